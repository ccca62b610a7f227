# SPDX-License-Identifier: Apache-2.0
install(TARGETS nearkv LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS nearkv-cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY ${CMAKE_SOURCE_DIR}/include/nearkv DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(FILES ${machines} DESTINATION ${CMAKE_INSTALL_DATADIR}/nearkv/machines)
file(GLOB pages CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/man/*.1)
install(FILES ${pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
# The prefix is known only when installing (cmake --install --prefix): the file finds it from its own place.
file(RELATIVE_PATH NKV_PC_UP /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${CMAKE_SOURCE_DIR}/cmake/nearkv.pc.in ${CMAKE_BINARY_DIR}/nearkv.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/nearkv.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES ${CMAKE_SOURCE_DIR}/systemd/nearkv-pnmd.service DESTINATION lib/systemd/user)
