/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model that finds needles, by construction: a 3-layer Llama over bytes whose weights are set by hand. Its prompt
 * ends with "NAME is "; it copies the (at most five) digits and the byte after them that followed "NAME is " anywhere
 * in the context, then ends. Nothing else comes out of it: without a question it ends at once.
 *
 *   embedding    a constant C that dwarfs all else (so that every RMSNorm is the same scale: a plain copy), a constant
 *                1, a +-1 code of 24 bits per byte, indicators (digit, ' ', 'i', 's')
 *   attention 1  head j-1 looks back j tokens, j = 1..8: q and k come from C alone, so the score is a function of the
 *                distance d only, sum_f A_f cos(omega_f (d - j)), with one peak at d = j (26 nats to the next). The
 *                heads count conditions ("a space 3 back") and sum a +-1 projection of the five NAME bytes
 *   MLP 1        a SwiGLU unit is an AND gate. FLAG[m]: "' is ' and then m digits end here"; the signs of the
 *                projection, 18 bits, are latched where ' is ' ends and are 0 elsewhere
 *   attention 2  looks back 1..6: brings the latched bits along the digits, and the previous token's flags
 *   MLP 2        3 bits become 8 lanes of which one is 1: LANE_Q for the phrase that ends here, LANE_K for the one that
 *                ended before this token. Both are 0 at every token that is no value: keys are rare, so the min/max box
 *                of a page without a value is a point at 0, and page digests tell the pages apart
 *   attention 3  q = LANE_Q and FLAG, k = LANE_K and PLACE_K (digits so far): 7 symbols of 40 nats; v = the byte's code
 *   output       dot product with the byte codes; the end token wins where no flag is up
 *
 * Weights are sums of powers of two that f16 holds exactly, save the RoPE phases and the retrieval scale. Norm weights
 * follow from C: everything else moves the rms by less than half a percent, and since a norm scales all dimensions
 * alike, gates keep their sign. (Measuring the rms with a forward pass over sample text was rejected: it gains
 * nothing.)
 */
#include "model/needle_net.h"

#include <assert.h>
#include <math.h>

#include "base/mem.h"

enum {
    CODE_BITS = 24,
    HASH_BITS = 18,
    SYMBOL_BITS = 3,
    N_LANES = HASH_BITS / SYMBOL_BITS << SYMBOL_BITS,
    MAX_DIGITS = 5,
    N_FLAGS = MAX_DIGITS + 1,
    NAME_BYTES = 5,
    N_MATCH = N_LANES + N_FLAGS, /* lanes that a retrieval head compares */

    LOOK_PAIRS = 34,    /* RoPE pairs 0..33 place a look-back head */
    MATCH_ROW = 2 * 37, /* pairs 37..63 turn by less than 0.02 over two million tokens: they match lanes */
};

/* Dimensions of the residual stream. */
enum {
    BIG = 0, /* C */
    ONE = 1,
    CODE = 2,
    DIGIT = CODE + CODE_BITS, /* the indicators follow the code: together they are what attention 1 carries */
    SPACE,
    LETTER_I,
    LETTER_S,
    SUM,                           /* projections of NAME, in units of SUM_UNIT */
    LATCH = SUM + HASH_BITS,       /* their signs, where ' is ' ends */
    FLAG = LATCH + HASH_BITS,      /* with the latch: what attention 2 carries */
    NAME_Q = FLAG + N_FLAGS,       /* latched bits of 1..5 tokens before, summed */
    NAME_K = NAME_Q + HASH_BITS,   /* 1..6 tokens before */
    MET_FLAG = NAME_K + HASH_BITS, /* conditions met, in units of MET_UNIT */
    MET_NO_DIGIT = MET_FLAG + N_FLAGS,
    MET_SAY,
    FLAG_BEFORE,                     /* the previous token's flags */
    COUNT_Q = FLAG_BEFORE + N_FLAGS, /* phrases that ended 1..5 tokens before */
    COUNT_K,
    NO_DIGIT, /* ' is ' and then something else than a digit */
    SAY,      /* ' is' ends here: a space comes next */
    LANE_Q,
    LANE_K = LANE_Q + N_LANES,
    PLACE_K = LANE_K + N_LANES,
    OUT = PLACE_K + N_FLAGS,
    END = OUT + CODE_BITS,
};
_Static_assert((int)END <= (int)N_EMBD, "the residual stream is full");

#define C          128.0f /* the constant of the embedding */
#define GATE       16.0f  /* a gate's argument is at least this far from 0: silu is then x or 0 to 2e-6 */
#define MET_UNIT   0.25f
#define SUM_UNIT   0.0625f
#define RAMP       8.0f    /* slope of the sign() ramp */
#define NO_PHRASE  1024.0f /* lowers a latch's gates below any projection */
#define LOGIT      3.0f
#define MATCH_NATS 40.0 /* per symbol */

/* ---- Codes and randomness ---------------------------------------------------------------------------------------- */

/* The extended Golay code: 24 bits for 12, any two at least 8 apart. */
static uint32_t golay(uint32_t data)
{
    uint32_t rest = data << 11, word;

    for (int i = 22; i >= 11; i--)
        rest ^= rest >> i & 1 ? 0xc75u << (i - 11) : 0;
    word = data << 11 | rest;
    return word << 1 | (uint32_t)__builtin_parity(word);
}

/* Bit b of a token's code, +1 or -1. A space has one code in both spellings. */
static float code_bit(uint32_t token, uint32_t b)
{
    uint32_t data = token == TOKEN_SPACE ? TOKEN_BYTE + ' ' : token;

    return golay(data) >> b & 1 ? 1.0f : -1.0f;
}

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static float random_sign(uint64_t *state)
{
    return next_random(state) >> 63 ? 1.0f : -1.0f;
}

/* ---- Attention --------------------------------------------------------------------------------------------------- */

/* Rows 2f and 2f + 1 of a head are RoPE pair f (GGUF's order for `llama`). */
static float *head_row(float *w, uint32_t head, uint32_t row)
{
    return w + (size_t)(head * HEAD_DIM + row) * N_EMBD;
}

/* Value lane i of both KV heads carries dimension src + i. */
static void carry_values(struct needle_layer *layer, uint32_t src, uint32_t n)
{
    for (uint32_t kv = 0; kv < N_KV_HEADS; kv++)
        for (uint32_t i = 0; i < n; i++)
            head_row(layer->v, kv, i)[src + i] = 1;
}

/* Adds weight times value lane `lane` of a head to dimension dim. */
static void put(struct needle_layer *layer, uint32_t head, uint32_t lane, uint32_t dim, float weight)
{
    layer->o[(size_t)dim * Q_ROWS + head * HEAD_DIM + lane] += weight;
}

/* k points along the first half of pair f; q does after a turn by -omega_f distance[h]. */
static void look_back(struct needle_layer *layer, const uint32_t *distance)
{
    for (uint32_t f = 0; f < LOOK_PAIRS; f++) {
        double omega = pow((double)NEEDLE_ROPE_BASE, -2.0 * f / HEAD_DIM);
        double k = sqrt((f ? 14.0 : 48.0) * sqrt(HEAD_DIM)) / (double)C;

        for (uint32_t kv = 0; kv < N_KV_HEADS; kv++)
            head_row(layer->k, kv, 2 * f)[BIG] = (float)k;
        for (uint32_t h = 0; h < N_HEADS; h++) {
            head_row(layer->q, h, 2 * f)[BIG] = (float)(k * cos(omega * distance[h]));
            head_row(layer->q, h, 2 * f + 1)[BIG] = (float)(-k * sin(omega * distance[h]));
        }
    }
}

/* ---- Gates ------------------------------------------------------------------------------------------------------- */

/* A new SwiGLU unit: silu(gate . x) * 1. */
static uint32_t add_unit(struct needle_layer *layer)
{
    assert(layer->n_units < N_FF);
    layer->up[(size_t)layer->n_units * N_EMBD + ONE] = 1;
    return layer->n_units++;
}

static void gate(struct needle_layer *layer, uint32_t unit, uint32_t dim, float weight)
{
    layer->gate[(size_t)unit * N_EMBD + dim] += weight;
}

static void bias(struct needle_layer *layer, uint32_t unit, float value)
{
    gate(layer, unit, BIG, value / C);
}

static void emit(struct needle_layer *layer, uint32_t unit, uint32_t dim, float weight)
{
    layer->down[(size_t)dim * N_FF + unit] += weight;
}

/* ---- Phrases: conjunctions of "the token `back` tokens ago has indicator `dim`" ---------------------------------- */

struct phrase {
    uint32_t met; /* where the look-back heads count the conditions with back >= 1 */
    uint32_t n;
    struct {
        uint32_t back, dim;
    } at[MAX_DIGITS + 4];
};

static void require(struct phrase *phrase, uint32_t back, uint32_t dim)
{
    phrase->at[phrase->n].back = back;
    phrase->at[phrase->n++].dim = dim;
}

/* ' is ' ended `back` tokens ago. */
static void require_is(struct phrase *phrase, uint32_t back)
{
    require(phrase, back, SPACE);
    require(phrase, back + 1, LETTER_S);
    require(phrase, back + 2, LETTER_I);
    require(phrase, back + 3, SPACE);
}

static void count_conditions(struct needle_layer *layer, const struct phrase *phrase)
{
    for (uint32_t i = 0; i < phrase->n; i++)
        if (phrase->at[i].back)
            put(layer, phrase->at[i].back - 1, phrase->at[i].dim - CODE, phrase->met, MET_UNIT);
}

/* A unit that is GATE when all conditions hold and 0 when one is missing. */
static uint32_t add_phrase_unit(struct needle_layer *layer, const struct phrase *phrase)
{
    uint32_t unit = add_unit(layer);

    bias(layer, unit, -2 * GATE * ((float)phrase->n - 0.5f));
    gate(layer, unit, phrase->met, 2 * GATE / MET_UNIT);
    for (uint32_t i = 0; i < phrase->n; i++)
        if (!phrase->at[i].back)
            gate(layer, unit, phrase->at[i].dim, 2 * GATE);
    return unit;
}

/* ---- Layer 1 ----------------------------------------------------------------------------------------------------- */

static void project_name(struct needle_layer *layer, uint64_t *random)
{
    for (uint32_t back = 4; back < 4 + NAME_BYTES; back++)
        for (uint32_t a = 0; a < HASH_BITS; a++)
            for (uint32_t b = 0; b < CODE_BITS; b++)
                put(layer, back - 1, b, SUM + a, SUM_UNIT * random_sign(random));
}

/*
 * LATCH = sign(S + 1) where ' is ' ends, else 0. S, a sum of 120 signs, is even: silu(r (S + 2)) - silu(r S) is 0 up to
 * S = -2 and 2 r from S = 0. Away from the phrase both gates are far below 0.
 */
static void latch_signs(struct needle_layer *layer, uint32_t phrase_unit)
{
    for (uint32_t a = 0; a < HASH_BITS; a++) {
        for (int step = 0; step < 2; step++) {
            uint32_t unit = add_unit(layer);

            gate(layer, unit, SUM + a, RAMP / SUM_UNIT);
            gate(layer, unit, ONE, step ? 0 : 2 * RAMP);
            bias(layer, unit, -4 * NO_PHRASE);
            gate(layer, unit, SPACE, NO_PHRASE);
            gate(layer, unit, MET_FLAG, NO_PHRASE / MET_UNIT);
            emit(layer, unit, LATCH + a, (step ? -1 : 1) / RAMP);
        }
        emit(layer, phrase_unit, LATCH + a, -1 / GATE);
    }
}

static void set_flags(struct needle_layer *layer)
{
    for (uint32_t m = 0; m < N_FLAGS; m++) {
        struct phrase phrase = {.met = MET_FLAG + m};
        uint32_t unit;

        for (uint32_t back = 0; back < m; back++)
            require(&phrase, back, DIGIT);
        require_is(&phrase, m);
        count_conditions(layer, &phrase);
        unit = add_phrase_unit(layer, &phrase);
        emit(layer, unit, FLAG + m, 1 / GATE);
        if (m == 0)
            latch_signs(layer, unit);
    }
}

static void build_layer_1(struct needle_layer *layer, uint64_t *random)
{
    static const uint32_t distance[N_HEADS] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct phrase no_digit = {.met = MET_NO_DIGIT}, say = {.met = MET_SAY};
    uint32_t unit;

    look_back(layer, distance);
    carry_values(layer, CODE, CODE_BITS + 4);
    project_name(layer, random);
    set_flags(layer);

    require_is(&no_digit, 1);
    count_conditions(layer, &no_digit);
    unit = add_phrase_unit(layer, &no_digit);
    gate(layer, unit, DIGIT, -4 * GATE);
    emit(layer, unit, NO_DIGIT, 1 / GATE);

    require(&say, 0, LETTER_S);
    require(&say, 1, LETTER_I);
    require(&say, 2, SPACE);
    count_conditions(layer, &say);
    unit = add_phrase_unit(layer, &say);
    emit(layer, unit, SAY, 1 / GATE);
    for (uint32_t b = 0; b < CODE_BITS; b++)
        emit(layer, unit, OUT + b, code_bit(TOKEN_SPACE, b) / GATE);
}

/* ---- Layer 2 ----------------------------------------------------------------------------------------------------- */

/*
 * Starts a unit that is GATE when `valid` (a flag) is 1, exactly one phrase (`count`) is near and `missing` further
 * votes of GATE, added by the caller, come in; else 0.
 */
static uint32_t add_value_unit(struct needle_layer *layer, uint32_t valid, uint32_t count, float missing)
{
    uint32_t unit = add_unit(layer);

    bias(layer, unit, (-8 + 6 - missing + 1) * GATE);
    for (uint32_t m = 0; m < N_FLAGS; m++)
        gate(layer, unit, valid + m, 8 * GATE);
    gate(layer, unit, count, -6 * GATE);
    return unit;
}

/* Lane v of a symbol is 1 when the symbol's three bits spell v. */
static void vote_symbol(struct needle_layer *layer, uint32_t unit, uint32_t bits, uint32_t lane)
{
    uint32_t symbol = lane >> SYMBOL_BITS;

    for (uint32_t i = 0; i < SYMBOL_BITS; i++)
        gate(layer, unit, bits + symbol * SYMBOL_BITS + i, lane >> i & 1 ? GATE : -GATE);
}

static void set_lanes(struct needle_layer *layer)
{
    for (uint32_t lane = 0; lane < N_LANES; lane++) {
        uint32_t unit = add_value_unit(layer, FLAG, COUNT_Q, SYMBOL_BITS);

        gate(layer, unit, FLAG, -6 * GATE); /* a phrase that ends right here is near, too */
        vote_symbol(layer, unit, LATCH, lane);
        vote_symbol(layer, unit, NAME_Q, lane);
        emit(layer, unit, LANE_Q + lane, 1 / GATE);

        unit = add_value_unit(layer, FLAG_BEFORE, COUNT_K, SYMBOL_BITS);
        gate(layer, unit, NO_DIGIT, -8 * GATE);
        vote_symbol(layer, unit, NAME_K, lane);
        emit(layer, unit, LANE_K + lane, 1 / GATE);
    }
    for (uint32_t m = 0; m < N_FLAGS; m++) {
        uint32_t unit = add_unit(layer);

        bias(layer, unit, (-8 + 6 + 1) * GATE);
        gate(layer, unit, FLAG_BEFORE + m, 8 * GATE);
        gate(layer, unit, COUNT_K, -6 * GATE);
        gate(layer, unit, NO_DIGIT, -8 * GATE);
        emit(layer, unit, PLACE_K + m, 1 / GATE);
    }
}

static void build_layer_2(struct needle_layer *layer)
{
    static const uint32_t distance[N_HEADS] = {1, 2, 3, 4, 5, 6, 1, 1};

    look_back(layer, distance);
    carry_values(layer, LATCH, HASH_BITS + N_FLAGS);
    for (uint32_t h = 0; h < 6; h++) {
        bool for_query = distance[h] <= MAX_DIGITS;

        for (uint32_t a = 0; a < HASH_BITS; a++) {
            put(layer, h, a, NAME_K + a, 1);
            put(layer, h, a, NAME_Q + a, for_query);
        }
        put(layer, h, HASH_BITS, COUNT_K, 1);
        put(layer, h, HASH_BITS, COUNT_Q, for_query);
    }
    for (uint32_t m = 0; m < N_FLAGS; m++)
        for (uint32_t h = 6; h < N_HEADS; h++)
            put(layer, h, HASH_BITS + m, FLAG_BEFORE + m, 0.5f);
    set_lanes(layer);
}

/* ---- Layer 3 ----------------------------------------------------------------------------------------------------- */

/*
 * The heads of a group see the same and vote with weights of both signs that sum to 1: a head paired with the wrong KV
 * head spoils the sum. The second KV head holds the lanes in another order and with other signs for the same reason.
 */
static void build_layer_3(struct needle_layer *layer, uint64_t *random)
{
    static const float vote[N_KV_HEADS][GROUP] = {{3, 3, -3, -2}, {3, -3, 3, -2}};
    double scale = sqrt(MATCH_NATS * sqrt(HEAD_DIM));

    carry_values(layer, CODE, CODE_BITS);
    for (uint32_t kv = 0; kv < N_KV_HEADS; kv++) {
        uint32_t order[N_MATCH];

        for (uint32_t i = 0; i < N_MATCH; i++) {
            uint32_t j = kv ? (uint32_t)(next_random(random) % (i + 1)) : i;

            order[i] = order[j];
            order[j] = i;
        }
        for (uint32_t i = 0; i < N_MATCH; i++) {
            float weight = (float)scale * (kv ? random_sign(random) : 1);
            bool lane = order[i] < N_LANES;
            uint32_t place = order[i] - N_LANES;

            head_row(layer->k, kv, MATCH_ROW + i)[lane ? LANE_K + order[i] : PLACE_K + place] = weight;
            for (uint32_t h = kv * GROUP; h < (kv + 1) * GROUP; h++)
                head_row(layer->q, h, MATCH_ROW + i)[lane ? LANE_Q + order[i] : FLAG + place] = weight;
        }
        for (uint32_t g = 0; g < GROUP; g++)
            for (uint32_t b = 0; b < CODE_BITS; b++)
                put(layer, kv * GROUP + g, b, OUT + b, vote[kv][g] / N_KV_HEADS);
    }
}

/* ---- The whole --------------------------------------------------------------------------------------------------- */

static void build_embedding(struct needle_net *net)
{
    for (uint32_t t = 0; t < N_VOCAB; t++) {
        uint32_t byte = t == TOKEN_SPACE ? ' ' : t - TOKEN_BYTE; /* special tokens: above 255 */
        float *x = net->embd + (size_t)t * N_EMBD, *y = net->output + (size_t)t * N_EMBD;

        x[BIG] = C;
        x[ONE] = 1;
        x[DIGIT] = byte >= '0' && byte <= '9';
        x[SPACE] = byte == ' ';
        x[LETTER_I] = byte == 'i';
        x[LETTER_S] = byte == 's';
        for (uint32_t b = 0; b < CODE_BITS; b++) {
            x[CODE + b] = code_bit(t, b);
            if (byte < 256) /* of a space's two spellings U+2581 wins */
                y[OUT + b] = code_bit(t, b) * (t == TOKEN_BYTE + ' ' ? LOGIT / 2 : LOGIT);
        }
    }
    net->output[TOKEN_EOS * N_EMBD + BIG] = LOGIT * CODE_BITS / C;
    net->output[TOKEN_EOS * N_EMBD + SAY] = -LOGIT * CODE_BITS;
    for (uint32_t m = 0; m < N_FLAGS; m++)
        net->output[TOKEN_EOS * N_EMBD + FLAG + m] = -LOGIT * CODE_BITS;
}

static float *take(float **next, size_t rows, size_t cols)
{
    float *w = *next;

    *next += rows * cols;
    return w;
}

#define LAYER_WEIGHTS (2u * Q_ROWS * N_EMBD + 2u * KV_ROWS * N_EMBD + 3u * N_FF * N_EMBD)
#define NET_WEIGHTS   (2u * N_VOCAB * N_EMBD + N_LAYERS * LAYER_WEIGHTS)

int nkv_needle_net_open(struct needle_net *net)
{
    uint64_t random = 20;
    float *next;

    TRY(nkv_alloc(NET_WEIGHTS, sizeof *next, &net->block));
    next = net->block;
    net->embd = take(&next, N_VOCAB, N_EMBD);
    net->output = take(&next, N_VOCAB, N_EMBD);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        net->layers[l] = (struct needle_layer){
            .q = take(&next, Q_ROWS, N_EMBD),
            .k = take(&next, KV_ROWS, N_EMBD),
            .v = take(&next, KV_ROWS, N_EMBD),
            .o = take(&next, N_EMBD, Q_ROWS),
            .gate = take(&next, N_FF, N_EMBD),
            .up = take(&next, N_FF, N_EMBD),
            .down = take(&next, N_EMBD, N_FF),
        };
    build_embedding(net);
    build_layer_1(&net->layers[0], &random);
    build_layer_2(&net->layers[1]);
    build_layer_3(&net->layers[2], &random);
    return 0;
}

/* C, 1 and the code; the rest is small against C. */
float nkv_needle_norm(void)
{
    return sqrtf((C * C + 1 + CODE_BITS) / N_EMBD);
}
