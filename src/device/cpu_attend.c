/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ATTEND: split into tasks by query block, KV heads and part of the page list; each task folds its pages in
 * ascending order into a partial of its own; then the parts of a row are merged in list order.
 *
 *   one token        a task takes all KV heads of a unit: pages lie one after the other in memory with their heads in
 *                    a row, so it is one sequential stream; few pages make few parts, as merging is not free
 *   many tokens      a task takes one KV head and a block of tokens whose rows fill the kernel; a page is read once per
 *                    block, from cache when its neighbours have just used it
 *
 * The invariant is that the split depends on the command and the shape only, never on the number of threads or on who
 * was faster, so results are the same bits for any team. Splitting by thread was rejected for that reason.
 */
#include <string.h>

#include "device/cpu.h"

#define TASK_BYTES ((uint64_t)512 << 10) /* of pages: worth handing out, and worth the merge of one more part */

struct attend {
    struct nkv_cpu *cpu;
    const struct nkv_cmd *cmd;
    const struct nkv_kv_seq *seq;
    const struct nkv_kernels *kernels;
    bool causal, per_head;
    struct nkv_cpu_lists lists; /* n_units 0: every page */
    uint32_t n_pages;           /* of the longest list */
    const float *q;
    float *o, *m, *l;                                 /* in the window */
    uint32_t block_tokens, n_blocks, n_groups;        /* blocks of query tokens; groups of KV heads */
    uint32_t heads_per_task, n_parts, pages_per_part; /* KV heads of a group; parts of a list */
    uint32_t task_rows;                               /* at most, rounded up to whole cache lines of m and l */
};

/* One task, decoded: rows are [KV head of the task][token][query head of the group]. */
struct task {
    uint32_t token0, n_tokens, head0, part, rows_per_head;
    float *o, *m, *l;
    const char *prepared; /* or NULL */
};

static struct task decode(const struct attend *a, uint32_t index, uint32_t rank)
{
    struct nkv_cpu *cpu = a->cpu;
    uint32_t group = index % a->n_groups, rest = index / a->n_groups, block = rest / a->n_parts;
    struct task task = {
        .token0 = block * a->block_tokens, .head0 = group * a->heads_per_task, .part = rest % a->n_parts};
    uint32_t left = a->cmd->n_tokens - task.token0;

    task.n_tokens = left < a->block_tokens ? left : a->block_tokens;
    task.rows_per_head = task.n_tokens * cpu->group;
    if (a->n_parts == 1) {
        task.o = cpu->ranks[rank].o;
        task.m = cpu->ranks[rank].m;
        task.l = cpu->ranks[rank].l;
    } else {
        task.o = cpu->partials + index * ((size_t)a->task_rows * (cpu->shape.head_dim + 2));
        task.m = task.o + (size_t)a->task_rows * cpu->shape.head_dim;
        task.l = task.m + a->task_rows;
    }
    return task;
}

/* Copies one KV head's rows of the partials between a task and the window's layout. */
static void scatter(const struct attend *a, const struct task *task, uint32_t head)
{
    const struct nkv_kv_shape *shape = &a->cpu->shape;
    uint32_t dim = shape->head_dim, group = a->cpu->group;
    size_t row = (size_t)(head - task->head0) * task->rows_per_head;

    for (uint32_t t = 0; t < task->n_tokens; t++, row += group) {
        size_t out = (size_t)(task->token0 + t) * shape->n_heads + (size_t)head * group;

        memcpy(a->o + out * dim, task->o + row * dim, group * dim * sizeof(float));
        memcpy(a->m + out, task->m + row, group * sizeof(float));
        memcpy(a->l + out, task->l + row, group * sizeof(float));
    }
}

static void gather_queries(const struct attend *a, const struct task *task, float *q_out)
{
    const struct nkv_kv_shape *shape = &a->cpu->shape;
    size_t row_floats = (size_t)a->cpu->group * shape->head_dim;

    for (uint32_t head = task->head0; head < task->head0 + a->heads_per_task; head++)
        for (uint32_t t = 0; t < task->n_tokens; t++) {
            const float *q = a->q + (size_t)(task->token0 + t) * shape->n_heads * shape->head_dim + head * row_floats;

            for (size_t i = 0; i < row_floats; i++)
                *q_out++ = q[i] * a->cpu->scale;
        }
}

/* Brings the task's queries into the kernel's form, where it has one. returns: the first row, or NULL. */
static const char *prepare_queries(const struct attend *a, const struct task *task, const struct nkv_cpu_rank *scratch)
{
    const struct nkv_kv_shape *shape = &a->cpu->shape;

    if (!a->kernels->prepare[shape->dtype])
        return NULL;
    a->kernels->prepare[shape->dtype]((size_t)a->heads_per_task * task->rows_per_head, shape->head_dim, scratch->q,
                                      scratch->prepared);
    return scratch->prepared;
}

static void clear_partial(const struct attend *a, const struct task *task)
{
    size_t rows = (size_t)a->heads_per_task * task->rows_per_head;

    memset(task->o, 0, rows * a->cpu->shape.head_dim * sizeof(float));
    memset(task->l, 0, rows * sizeof(float));
    for (size_t i = 0; i < rows; i++)
        task->m[i] = -__builtin_inff();
}

static uint32_t list_length(const struct attend *a, uint32_t head)
{
    if (a->lists.n_units == 0)
        return a->n_pages;
    return a->lists.n[a->per_head ? head : 0];
}

static uint32_t list_page(const struct attend *a, uint32_t head, uint32_t i)
{
    if (a->lists.n_units == 0)
        return i;
    return a->lists.ids[a->per_head ? head : 0][i];
}

/* Tokens of `page` that query token `token` of the command sees. */
static uint32_t tokens_seen(const struct attend *a, uint32_t page, uint32_t token)
{
    uint32_t n = nkv_seq_page_tokens(a->cpu->store, a->seq, a->cmd->layer, page);
    uint64_t begin, end;

    if (!a->causal)
        return n;
    begin = (uint64_t)page * a->cpu->shape.page_tokens;
    end = (uint64_t)a->cmd->pos + token + 1;
    if (end <= begin)
        return 0;
    return end - begin < n ? (uint32_t)(end - begin) : n;
}

/* Limits of the task's rows in a page. returns: tokens that the last row sees; all_out: whether all rows see as many.
 */
static uint32_t page_limits(const struct attend *a, const struct task *task, uint32_t page, uint32_t *visible,
                            bool *all_out)
{
    uint32_t last = tokens_seen(a, page, task->token0 + task->n_tokens - 1);

    *all_out = last == 0 || tokens_seen(a, page, task->token0) == last;
    for (uint32_t t = 0; !*all_out && t < task->n_tokens; t++)
        for (uint32_t h = 0; h < a->cpu->group; h++)
            *visible++ = tokens_seen(a, page, task->token0 + t);
    return last;
}

/*
 * Tells the kernel where the page lies that this task folds after the next one. The next one is too close where a page
 * is small: of 32 tokens in q8_0 it takes half a microsecond, which is what memory takes when it is busy.
 */
static void hint(const struct attend *a, const struct task *task, uint32_t i, uint32_t end, uint32_t head,
                 struct nkv_attend *fold)
{
    struct nkv_page_view page;
    uint32_t ahead = head - task->head0 + 2;
    uint32_t entry = i + ahead / a->heads_per_task, ahead_head = task->head0 + ahead % a->heads_per_task;

    if (entry >= end)
        return;
    page = nkv_store_page(a->cpu->store, a->seq, a->cmd->layer, list_page(a, ahead_head, entry), ahead_head);
    fold->next_k = page.k;
    fold->next_v = page.v;
    fold->next_k_scale = page.k_scale;
    fold->next_v_scale = page.v_scale;
}

/* Folds entry i of the list, for the KV heads of the task in turn. */
static void fold_page(const struct attend *a, const struct task *task, const struct nkv_cpu_rank *scratch, uint32_t i,
                      uint32_t end)
{
    const struct nkv_kv_shape *shape = &a->cpu->shape;
    uint32_t page = list_page(a, task->head0, i), last_head = task->head0 + a->heads_per_task - 1;
    bool all;
    uint32_t n = page_limits(a, task, page, scratch->visible, &all);

    for (uint32_t head = task->head0; n > 0 && head <= last_head; head++) {
        struct nkv_page_view view = nkv_store_page(a->cpu->store, a->seq, a->cmd->layer, page, head);
        size_t row = (size_t)(head - task->head0) * task->rows_per_head;
        struct nkv_attend fold = {
            .n_rows = task->rows_per_head,
            .n_tokens = n,
            .dim = shape->head_dim,
            .q = scratch->q + row * shape->head_dim,
            .prepared = task->prepared ? task->prepared + row * nkv_prepared_row_bytes(shape->head_dim) : NULL,
            .visible = all ? NULL : scratch->visible,
            .k = view.k,
            .v = view.v,
            .k_scale = view.k_scale,
            .v_scale = view.v_scale,
            .o = task->o + row * shape->head_dim,
            .m = task->m + row,
            .l = task->l + row,
            .scratch = scratch->kernel,
        };

        hint(a, task, i, end, head, &fold);
        a->kernels->attend[shape->dtype](&fold);
    }
}

static void attend_task(void *arg, uint32_t index, uint32_t rank)
{
    const struct attend *a = arg;
    const struct nkv_cpu_rank *scratch = &a->cpu->ranks[rank];
    struct task task = decode(a, index, rank);
    uint32_t n = list_length(a, task.head0), begin = task.part * a->pages_per_part;
    uint32_t end = begin + a->pages_per_part < n ? begin + a->pages_per_part : n;

    clear_partial(a, &task);
    if (begin < end) {
        gather_queries(a, &task, scratch->q);
        task.prepared = prepare_queries(a, &task, scratch);
    }
    for (uint32_t i = begin; i < end; i++)
        fold_page(a, &task, scratch, i, end);
    for (uint32_t head = task.head0; a->n_parts == 1 && head < task.head0 + a->heads_per_task; head++)
        scatter(a, &task, head);
}

/* One KV head of one query block: part 0 takes the others in. */
static void merge_task(void *arg, uint32_t index, uint32_t rank)
{
    const struct attend *a = arg;
    uint32_t n_heads = a->cpu->shape.n_kv_heads, dim = a->cpu->shape.head_dim;
    uint32_t head = index % n_heads, first = index / n_heads * a->n_parts * a->n_groups + head / a->heads_per_task;
    struct task to = decode(a, first, rank);
    size_t row = (size_t)(head - to.head0) * to.rows_per_head;

    for (uint32_t part = 1; part < a->n_parts; part++) {
        struct task from = decode(a, first + part * a->n_groups, rank);

        a->kernels->merge(to.rows_per_head, dim, to.o + row * dim, to.m + row, to.l + row, from.o + row * dim,
                          from.m + row, from.l + row);
    }
    scatter(a, &to, head);
}

static int check_operands(struct attend *a)
{
    const struct nkv_cmd *cmd = a->cmd;
    const struct nkv_kv_shape *shape = &a->cpu->shape;
    uint64_t q_bytes = nkv_cpu_times((uint64_t)cmd->n_tokens * shape->n_heads, shape->head_dim * sizeof(float));
    struct nkv_partial_layout layout = nkv_partial_layout(shape, cmd->n_tokens);
    uint64_t list_bytes = cmd->flags & NKV_ALL_PAGES ? 0 : nkv_cpu_units(a->cpu, cmd) * nkv_list_stride(cmd->n_pages);
    char *out = NULL;

    TRY(nkv_cpu_check_operand(a->cpu, "attend: q", cmd->in_offset, q_bytes, &a->q));
    TRY(nkv_cpu_check_operand(a->cpu, "attend: partials", cmd->out_offset, layout.bytes, &out));
    TRY(nkv_cpu_check_disjoint(cmd->out_offset, layout.bytes, cmd->in_offset, q_bytes));
    TRY(nkv_cpu_check_disjoint(cmd->out_offset, layout.bytes, cmd->list_offset, list_bytes));
    a->o = (float *)(void *)(out + layout.o);
    a->m = (float *)(void *)(out + layout.m);
    a->l = (float *)(void *)(out + layout.l);
    return 0;
}

static int check_attend(struct attend *a)
{
    const struct nkv_cmd *cmd = a->cmd;
    uint32_t length = a->seq->lengths[cmd->layer];

    if (cmd->n_tokens == 0)
        FAIL(NKV_EINVAL, "attend: 0 query tokens");
    if (a->seq->flags & NKV_SLOTS && cmd->flags & (NKV_CAUSAL | NKV_ALL_PAGES))
        FAIL(NKV_EINVAL, "attend: sequence %u holds page slots, which have no order", cmd->seq);
    if (a->seq->held && cmd->flags & NKV_ALL_PAGES)
        FAIL(NKV_EINVAL, "attend: sequence %u holds no pages but the newest", cmd->seq);
    if (a->causal && (cmd->pos > length || cmd->n_tokens > length - cmd->pos))
        FAIL(NKV_EINVAL, "attend: query tokens %u+%u, but layer %u of sequence %u holds %u tokens", cmd->pos,
             cmd->n_tokens, cmd->layer, cmd->seq, length);
    return check_operands(a);
}

/* The pages: lists checked, or all that the last query token may see. */
static int take_pages(struct attend *a)
{
    const struct nkv_cmd *cmd = a->cmd;

    if (cmd->flags & NKV_ALL_PAGES) {
        a->per_head = false;
        a->n_pages = a->causal ? (cmd->pos + (cmd->n_tokens - 1)) / a->cpu->shape.page_tokens + 1
                               : nkv_seq_layer_pages(a->cpu->store, a->seq, cmd->layer);
        return 0;
    }
    TRY(nkv_cpu_take_lists(a->cpu, cmd, cmd->n_pages, &a->lists));
    TRY(nkv_cpu_check_ids(a->cpu, a->seq, cmd->layer, &a->lists, true));
    for (uint32_t unit = 0; unit < a->lists.n_units; unit++)
        a->n_pages = a->lists.n[unit] > a->n_pages ? a->lists.n[unit] : a->n_pages;
    return 0;
}

static void split(struct attend *a)
{
    const struct nkv_kv_shape *shape = &a->cpu->shape;
    uint32_t rows_tokens = NKV_CPU_BLOCK_ROWS / a->cpu->group, max_parts, least;
    uint64_t page_bytes;

    a->heads_per_task = a->cmd->n_tokens == 1 && !a->per_head ? shape->n_kv_heads : 1;
    a->n_groups = shape->n_kv_heads / a->heads_per_task;
    a->block_tokens = rows_tokens > 64 ? 64 : rows_tokens ? rows_tokens : 1;
    a->n_blocks = (a->cmd->n_tokens - 1) / a->block_tokens + 1;
    rows_tokens = a->cmd->n_tokens < a->block_tokens ? a->cmd->n_tokens : a->block_tokens;
    a->task_rows = (uint32_t)nkv_round_up(a->heads_per_task * rows_tokens * a->cpu->group, NKV_CPU_ROW_GRAIN);
    page_bytes = nkv_page_bytes(shape, a->heads_per_task);
    least = page_bytes < TASK_BYTES ? (uint32_t)(TASK_BYTES / page_bytes) : 1;
    max_parts = (uint32_t)(NKV_CPU_PARTS / ((uint64_t)a->n_blocks * a->n_groups));
    max_parts = max_parts ? max_parts : 1;
    a->pages_per_part = (a->n_pages + max_parts - 1) / max_parts;
    a->pages_per_part = a->pages_per_part > least ? a->pages_per_part : least;
    a->n_parts = a->n_pages ? (a->n_pages - 1) / a->pages_per_part + 1 : 1;
}

/* Tokens that the last query token sees, mean over units. Only the last pages of an ascending list are not full. */
static int count_tokens(const struct attend *a)
{
    uint32_t n_lists = a->per_head ? a->cpu->shape.n_kv_heads : 1, page_tokens = a->cpu->shape.page_tokens;
    uint64_t sum = 0;

    for (uint32_t unit = 0; unit < n_lists; unit++) {
        uint32_t n = list_length(a, unit), seen = 0;

        for (; n > 0 && seen < page_tokens; n--) {
            seen = tokens_seen(a, list_page(a, unit, n - 1), a->cmd->n_tokens - 1);
            sum += seen;
        }
        sum += (uint64_t)n * page_tokens;
    }
    return sum / n_lists > INT32_MAX ? INT32_MAX : (int)(sum / n_lists); /* never taken for a failure */
}

/* Of all query blocks: pages that the last token of a block sees, from the last block, which sees most, down. */
static uint64_t count_bytes(const struct attend *a)
{
    const struct nkv_kv_shape *shape = &a->cpu->shape;
    uint32_t n_lists = a->per_head ? shape->n_kv_heads : 1;
    uint64_t n_pages = 0;

    for (uint32_t unit = 0; unit < n_lists; unit++) {
        uint32_t n = list_length(a, unit);

        for (uint32_t block = a->n_blocks, end = a->cmd->n_tokens; block-- > 0; end = block * a->block_tokens) {
            while (n > 0 && tokens_seen(a, list_page(a, unit, n - 1), end - 1) == 0)
                n--;
            n_pages += n;
        }
    }
    return n_pages * nkv_page_bytes(shape, shape->n_kv_heads / n_lists);
}

int nkv_cpu_attend(struct nkv_cpu *cpu, const struct nkv_cmd *cmd, struct nkv_kv_seq *seq)
{
    struct attend a = {.cpu = cpu,
                       .cmd = cmd,
                       .seq = seq,
                       .kernels = nkv_kernels(),
                       .causal = cmd->flags & NKV_CAUSAL,
                       .per_head = cmd->flags & NKV_PER_HEAD};
    uint32_t n_heads = cpu->shape.n_kv_heads;
    uint64_t row_bytes, bytes;

    TRY(check_attend(&a));
    TRY(take_pages(&a));
    split(&a);
    bytes = nkv_cpu_times(nkv_page_bytes(&cpu->shape, n_heads), (uint64_t)a.n_pages * cmd->n_tokens);
    nkv_cpu_tasks(cpu, bytes, a.n_blocks * a.n_groups * a.n_parts, attend_task, &a);
    row_bytes = (uint64_t)cmd->n_tokens * cpu->shape.n_heads * cpu->shape.head_dim * sizeof(float);
    if (a.n_parts > 1)
        nkv_cpu_tasks(cpu, a.n_parts * row_bytes, a.n_blocks * n_heads, merge_task, &a);
    cpu->read_bytes = count_bytes(&a);
    return count_tokens(&a);
}
