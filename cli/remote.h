/* SPDX-License-Identifier: Apache-2.0 */
/* remote.h: a device that is looked into without a model: a context over it, of the shape that it has. */
#ifndef NKV_CLI_REMOTE_H
#define NKV_CLI_REMOTE_H

#include <jansson.h>
#include <nearkv/nearkv.h>
#include <nearkv/serve.h>

struct remote {
    const char *spec;
    struct nkv_kv_shape shape; /* all 0: it has none yet, and context is NULL */
    struct nkv_device *device;
    struct nkv_context *context;
};

/* Whether a spec names memory, which this process opens, and not a process that has it. */
bool remote_is_memory(const char *spec);
/* What the device process behind spec, which begins with "unix:", tells. returns: CLI_OK, CLI_USAGE, CLI_FAILED with a
 * message. */
int remote_stat(const char *spec, struct nkv_serve_stat *stat_out);
/* spec: unix:PATH, file:PATH[:SIZE] or dax:PATH. shape: what it is opened with where it has none yet; NULL: then it is
 * not opened. returns: CLI_OK, CLI_USAGE, CLI_FAILED with a message; remote_close is right after any of them. */
int remote_open(struct remote *remote, const char *spec, const struct nkv_kv_shape *shape);
void remote_close(struct remote *remote);

/* What `nearkv pnm` and `nearkv session` do alike. returns: CLI_OK, CLI_USAGE, CLI_FAILED with a message. */
int remote_list(const struct remote *remote, bool json);
int remote_show(const struct remote *remote, const char *name, bool json);
int remote_remove(const struct remote *remote, const char *name);

#endif
