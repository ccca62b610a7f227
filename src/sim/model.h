/* SPDX-License-Identifier: Apache-2.0 */
/* sim/model.h: the shapes of models: their fields with ranges, as the file and the checks see them. */
#ifndef NKV_SIM_MODEL_H
#define NKV_SIM_MODEL_H

#include <nearkv/sim.h>

/* A whole number of struct nkv_sim_model. */
struct sim_model_field {
    const char *name;
    size_t offset;
    uint32_t low, high;
};

#define SIM_MODEL_FIELDS 7u
extern const struct sim_model_field sim_model_fields[SIM_MODEL_FIELDS];

/* Ranges, and fields that contradict one another. returns: 0, or NKV_EINVAL; the message starts with the field. */
int sim_model_check(const struct nkv_sim_model *model);
/*
 * Reads a model from a file's text; name is for messages.
 * returns: NKV_EFORMAT with file, line, field and the allowed range; NKV_ENOMEM.
 */
int sim_model_read(const char *text, size_t bytes, const char *name, struct nkv_sim_model *model_out);

#endif
