/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks into a device from outside. A device is opened with a shape, and whoever only looks has none: it is asked for
 * its own first. What it holds then comes through the same commands that a run uses, so a list needs no protocol of its
 * own and shows what a run would find.
 */
#include "remote.h"

#include <inttypes.h>
#include <nearkv/serve.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "text.h"

bool remote_is_memory(const char *spec)
{
    return strncmp(spec, "file:", 5) == 0 || strncmp(spec, "dax:", 4) == 0;
}

int remote_stat(const char *spec, struct nkv_serve_stat *stat_out)
{
    int status = nkv_serve_stat(spec + strlen("unix:"), stat_out);

    return status < 0 ? cli_refused(spec, status) : CLI_OK;
}

/* All 0: it has none yet. */
static int ask_shape(const char *spec, struct nkv_kv_shape *shape_out)
{
    struct nkv_kv_shape shape = {0};
    struct nkv_serve_stat stat;

    if (remote_is_memory(spec)) {
        if (nkv_memory_shape(spec, &shape) < 0)
            return cli_fail("%s", nkv_last_error());
    } else if (strncmp(spec, "unix:", 5) != 0) {
        return cli_usage("device '%s': give unix:PATH, the socket of a nearkv pnmd, or file:PATH", spec);
    } else {
        int rc = remote_stat(spec, &stat);

        if (rc != CLI_OK)
            return rc;
        shape = stat.shape;
    }
    *shape_out = shape;
    return CLI_OK;
}

int remote_open(struct remote *remote, const char *spec, const struct nkv_kv_shape *shape)
{
    bool is_memory = remote_is_memory(spec);
    struct nkv_device_config config = {
        .size = sizeof config, .n_threads = 1, .memory = is_memory ? spec : NULL, .name = is_memory ? spec : NULL};
    struct nkv_context_options options = {.size = sizeof options, .n_devices = 1, .max_batch = 1, .max_tokens = 1};
    int rc;

    *remote = (struct remote){.spec = spec};
    rc = ask_shape(spec, &config.shape);
    if (rc != CLI_OK)
        return rc;
    if (config.shape.n_layers == 0) {
        if (!shape)
            return CLI_OK;
        config.shape = *shape;
    }
    if (nkv_device_open(is_memory ? "cpu" : spec, &config, &remote->device) < 0)
        return cli_fail("%s", nkv_last_error());
    options.shape = config.shape;
    options.devices = &remote->device;
    if (nkv_context_open(&options, &remote->context) < 0)
        return cli_fail("%s", nkv_last_error());
    remote->shape = config.shape;
    return CLI_OK;
}

void remote_close(struct remote *remote)
{
    nkv_context_close(remote->context);
    if (remote->device)
        nkv_device_close(remote->device);
    *remote = (struct remote){0};
}

static json_t *info_json(const struct nkv_session_info *info)
{
    char model[17];

    snprintf(model, sizeof model, "%016" PRIx64, info->model);
    return json_pack("{s:s, s:s, s:I, s:I, s:b, s:I, s:I}", "name", info->name, "model", model, "tokens",
                     (json_int_t)info->n_tokens, "max_tokens", (json_int_t)info->max_tokens, "attached",
                     info->is_attached, "used_bytes", (json_int_t)info->used_bytes, "shared_bytes",
                     (json_int_t)info->shared_bytes);
}

/* All sessions, in an array that the caller frees. */
static int read_all(const struct remote *remote, struct nkv_session_info **infos_out, uint32_t *n_out)
{
    struct nkv_session_info *infos = NULL;
    uint32_t room = 0;
    int n = 0;

    do { /* again with more room where they did not fit */
        room = room ? 2 * room : 64;
        free(infos);
        infos = calloc(room, sizeof *infos);
        if (!infos)
            return cli_fail("out of memory for %u sessions", room);
        n = remote->context ? nkv_session_list(remote->context, 0, infos, room) : 0;
    } while (n == (int)room);
    if (n < 0) {
        free(infos);
        return cli_fail("%s: %s", remote->spec, nkv_last_error());
    }
    *infos_out = infos;
    *n_out = (uint32_t)n;
    return CLI_OK;
}

static int print_list_json(const struct nkv_session_info *infos, uint32_t n)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(list, info_json(&infos[i]));
    return text_print_json(json_pack("{s:s, s:o}", "schema", "nearkv.pnm.list/1", "sessions", list));
}

int remote_list(const struct remote *remote, bool json)
{
    struct nkv_session_info *infos = NULL;
    uint32_t n = 0;
    int rc = read_all(remote, &infos, &n);

    if (rc == CLI_OK && json)
        rc = print_list_json(infos, n);
    else if (rc == CLI_OK && n)
        printf("%-24s %-16s %10s %10s %10s %10s\n", "name", "model", "tokens", "of", "bytes", "shared");
    for (uint32_t i = 0; rc == CLI_OK && !json && i < n; i++)
        printf("%-24s %016" PRIx64 " %10u %10u %10s %10s%s\n", infos[i].name, infos[i].model, infos[i].n_tokens,
               infos[i].max_tokens, cli_bytes(infos[i].used_bytes), cli_bytes(infos[i].shared_bytes),
               infos[i].is_attached ? "  in use" : "");
    free(infos);
    return rc;
}

static int find(const struct remote *remote, const char *name, struct nkv_session_info *info_out)
{
    int status;

    if (!remote->context)
        return cli_fail("%s: no session '%s': the device holds nothing yet", remote->spec, name);
    status = nkv_session_find(remote->context, name, info_out);
    return status < 0 ? cli_refused(remote->spec, status) : CLI_OK;
}

int remote_show(const struct remote *remote, const char *name, bool json)
{
    const struct nkv_kv_shape *s = &remote->shape;
    struct nkv_session_info info;
    int rc = find(remote, name, &info);

    if (rc != CLI_OK)
        return rc;
    if (json)
        return text_print_json(json_pack("{s:s, s:o, s:{s:i, s:i, s:i, s:i, s:i, s:s, s:s}}", "schema",
                                         "nearkv.pnm.show/1", "session", info_json(&info), "shape", "layers",
                                         (int)s->n_layers, "heads", (int)s->n_heads, "kv_heads", (int)s->n_kv_heads,
                                         "head_dim", (int)s->head_dim, "page_tokens", (int)s->page_tokens, "dtype",
                                         nkv_dtype_name(s->dtype), "digest", nkv_digest_name(s->digest)));
    printf("%s: %u of at most %u tokens, %s%s\n", info.name, info.n_tokens, info.max_tokens, cli_bytes(info.used_bytes),
           info.is_attached ? ", in use" : "");
    printf("shared with other sessions: %s\n", cli_bytes(info.shared_bytes));
    printf("model %016" PRIx64 "; %u layers, %u:%u heads of %u, pages of %u, %s, %s\n", info.model, s->n_layers,
           s->n_heads, s->n_kv_heads, s->head_dim, s->page_tokens, nkv_dtype_name(s->dtype),
           nkv_digest_name(s->digest));
    return CLI_OK;
}

int remote_remove(const struct remote *remote, const char *name)
{
    struct nkv_session_info info;
    int rc = find(remote, name, &info);

    if (rc == CLI_OK && nkv_session_remove(remote->context, name) < 0)
        rc = cli_fail("%s: %s", remote->spec, nkv_last_error());
    return rc;
}
