/* The selective scan, forward and backward, in float32 for CPUs; see scan_reference.py for what it computes.
 *
 * Vectors run over channels: every lane is one channel, so no sum crosses lanes in the forward pass, and B and C are
 * scalars that all lanes share. Work is cut into items (a batch element and a range of channels) that threads take
 * from a counter; an item writes only its own outputs, so results do not depend on the number of threads. Within an
 * item, time runs in chunks: the forward pass saves the state before each; the backward pass recomputes a chunk's
 * states in a buffer that stays in the cache and walks it backwards.
 *
 * LANES is set by the build: 16, 8 or 4. A vector wider than the instruction set is correct but slow.
 * Letters: B batch, D channels, L steps, N state size, T steps of a chunk.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define CHUNK 32
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef float loose_vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* A strided tensor; strides in elements, axes as stated where it is used. */
typedef struct {
    float *data;
    int64_t stride[3];
} view;

typedef struct {
    int64_t batch, channels, steps, state_size;
    int64_t groups, group_channels; /* items per batch element, and the channels of each: a multiple of LANES */
    int64_t softplus, threads;
    view u, delta, z;              /* (B, D, L); z may be absent: data is NULL */
    view B, C;                     /* (B, N, L) */
    view A;                        /* (D, N) */
    view D, bias;                  /* (D); may be absent */
    view initial;                  /* (B, N, D); may be absent */
    view out, last;                /* (B, D, L), (B, N, D); forward only */
    view states;                   /* (B, chunks, N, D) without gaps; the forward pass may leave it out */
    view grad_out, grad_last;      /* (B, D, L), (B, N, D); backward only, as all below; grad_last may be absent */
    view grad_u, grad_delta;       /* (B, D, L) */
    view grad_z;                   /* (B, D, L); where z is */
    view grad_B, grad_C;           /* (B, groups, L, N) without gaps: parts to be summed */
    view grad_A, grad_initial;     /* (B, N, D) without gaps: grad_A is to be summed over B */
    view grad_D, grad_bias;        /* (B, D) without gaps: to be summed over B */
} scan_arguments;

/* ---- arithmetic on vectors ---- */

/* max and min let a NaN in x through: the instructions return their second operand then. */
INLINE vec at_least(vec x, vec bound) {
#if LANES == 16
    return (vec)_mm512_max_ps((__m512)bound, (__m512)x);
#elif LANES == 8
    return (vec)_mm256_max_ps((__m256)bound, (__m256)x);
#elif defined(__x86_64__)
    return (vec)_mm_max_ps((__m128)bound, (__m128)x);
#else
    ivec take = x < bound;
    return (vec)(((ivec)bound & take) | ((ivec)x & ~take));
#endif
}

INLINE vec at_most(vec x, vec bound) {
#if LANES == 16
    return (vec)_mm512_min_ps((__m512)bound, (__m512)x);
#elif LANES == 8
    return (vec)_mm256_min_ps((__m256)bound, (__m256)x);
#elif defined(__x86_64__)
    return (vec)_mm_min_ps((__m128)bound, (__m128)x);
#else
    ivec take = x > bound;
    return (vec)(((ivec)bound & take) | ((ivec)x & ~take));
#endif
}

INLINE vec splat(float x) { return x - (vec){0}; }

/* e^x = 2^n e^r with n = round(x / log 2): n goes into the exponent, a polynomial takes r (fitted to |r| <= log(2) / 2
 * with the first coefficients held at 1; relative error 4e-9 before rounding). log 2 is subtracted in two parts, the
 * first with so few bits that its multiples are exact. Below -87.7 the result is 0, from 88.4 infinite. */
INLINE vec exp_of(vec x) {
    const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = at_most(at_least(x, splat(-88.0f)), splat(88.8f));
    vec shifted = x * 1.44269504f + magic;
    vec n = shifted - magic;
    vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec scale = (vec)(((ivec)shifted - (ivec)magic + 127) << 23);
    vec p = r * 0.001381459859f + 0.008368716967f;
    p = p * r + 0.04166838805f;
    p = p * r + 0.1666652063f;
    p = p * r + 0.4999999345f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * scale;
}

INLINE vec sigmoid_of(vec x) { return 1.0f / (1.0f + exp_of(-x)); }

/* log(1 + e^x) = max(x, 0) + log1p(v) with v = e^-|x|; log1p(v) = 2 artanh(s) with s = v / (2 + v) <= 1/3. */
INLINE vec softplus_of(vec x) {
    vec positive = at_least(x, (vec){0});
    vec v = exp_of(x - 2.0f * positive); /* -|x| */
    vec s = v / (2.0f + v);
    vec q = s * s;
    vec p = q * (1.0f / 15) + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    p = p * q + 1.0f;
    return positive + 2.0f * s * p;
}

INLINE float sum_of_lanes(vec x) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
}

/* ---- moving between tensors and tiles of [step][lane] ---- */

/* Lanes beyond `lanes` are 0. */
INLINE void load_tile(vec *tile, const view *x, int64_t b, int64_t d, int64_t lanes, int64_t start, int64_t steps) {
    const float *from = x->data + b * x->stride[0] + d * x->stride[1] + start * x->stride[2];
    if (lanes == LANES && x->stride[1] == 1) {
        for (int64_t t = 0; t < steps; t++) tile[t] = *(const loose_vec *)(from + t * x->stride[2]);
        return;
    }
    float *to = (float *)tile;
    if (lanes < LANES) memset(to, 0, (size_t)steps * sizeof(vec));
    for (int64_t lane = 0; lane < lanes; lane++)
        for (int64_t t = 0; t < steps; t++) to[t * LANES + lane] = from[lane * x->stride[1] + t * x->stride[2]];
}

INLINE void store_tile(const vec *tile, const view *x, int64_t b, int64_t d, int64_t lanes, int64_t start,
                       int64_t steps) {
    float *to = x->data + b * x->stride[0] + d * x->stride[1] + start * x->stride[2];
    if (lanes == LANES && x->stride[1] == 1) {
        for (int64_t t = 0; t < steps; t++) *(loose_vec *)(to + t * x->stride[2]) = tile[t];
        return;
    }
    const float *from = (const float *)tile;
    for (int64_t lane = 0; lane < lanes; lane++)
        for (int64_t t = 0; t < steps; t++) to[lane * x->stride[1] + t * x->stride[2]] = from[t * LANES + lane];
}

/* One vector of channels out of, or into, an array whose channels lie at a stride. */
INLINE vec load_lanes(const float *from, int64_t stride, int64_t lanes) {
    vec x = {0};
    for (int64_t lane = 0; lane < lanes; lane++) x[lane] = from[lane * stride];
    return x;
}

INLINE void store_lanes(vec x, float *to, int64_t lanes) {
    for (int64_t lane = 0; lane < lanes; lane++) to[lane] = x[lane];
}

/* ---- what an item works with ---- */

/* Everything of one block of LANES channels that lives longer than a chunk, N rounded up to `padded`. */
typedef struct {
    vec *state;    /* [padded]: h in the forward pass, the gradient that flows back in the backward pass */
    vec *A;        /* [padded] */
    vec *grad_A;   /* [padded] */
    vec D, bias, grad_D, grad_bias;
} block;

typedef struct {
    const scan_arguments *arguments;
    int backward;
    int64_t next;      /* the next item to take */
    int out_of_memory;
} job;

typedef struct {
    int64_t padded;        /* N rounded up to a multiple of 4; the surplus has A = B = C = 0 and stays at 0 */
    block *blocks;
    float *B, *C;          /* [T][padded] */
    vec *decay, *history;  /* [T][padded], [T + 1][padded] */
    vec *grad_B, *grad_C;  /* [T][padded], lanes not summed yet */
} scratch;

static void load_coefficients(scratch *s, const scan_arguments *a, int64_t b, int64_t start, int64_t steps) {
    for (int64_t t = 0; t < steps; t++)
        for (int64_t n = 0; n < a->state_size; n++) {
            s->B[t * s->padded + n] = a->B.data[b * a->B.stride[0] + n * a->B.stride[1] + (start + t) * a->B.stride[2]];
            s->C[t * s->padded + n] = a->C.data[b * a->C.stride[0] + n * a->C.stride[1] + (start + t) * a->C.stride[2]];
        }
}

static void open_blocks(scratch *s, const scan_arguments *a, const view *first_state, int64_t b, int64_t from,
                        int64_t to) {
    for (int64_t d = from; d < to; d += LANES) {
        block *k = &s->blocks[(d - from) / LANES];
        int64_t lanes = to - d < LANES ? to - d : LANES;
        for (int64_t n = 0; n < s->padded; n++) {
            int real = n < a->state_size;
            k->A[n] = real ? load_lanes(a->A.data + d * a->A.stride[0] + n * a->A.stride[1], a->A.stride[0], lanes)
                           : (vec){0};
            k->state[n] = real && first_state->data
                              ? load_lanes(first_state->data + b * first_state->stride[0] + n * first_state->stride[1] +
                                               d * first_state->stride[2],
                                           first_state->stride[2], lanes)
                              : (vec){0};
            k->grad_A[n] = (vec){0};
        }
        k->D = a->D.data ? load_lanes(a->D.data + d * a->D.stride[0], a->D.stride[0], lanes) : (vec){0};
        k->bias = a->bias.data ? load_lanes(a->bias.data + d * a->bias.stride[0], a->bias.stride[0], lanes) : (vec){0};
        k->grad_D = k->grad_bias = (vec){0};
    }
}

static void store_states(const vec *states, float *to, const scan_arguments *a, int64_t d, int64_t lanes) {
    for (int64_t n = 0; n < a->state_size; n++) store_lanes(states[n], to + n * a->channels + d, lanes);
}

/* ---- forward ---- */

INLINE void forward_steps(block *k, const scratch *s, const int64_t padded, int64_t steps, const vec *time,
                          const vec *u, vec *y) {
    for (int64_t t = 0; t < steps; t++) {
        const float *B = s->B + t * padded, *C = s->C + t * padded;
        vec inflow = time[t] * u[t];
        vec sum[4] = {{0}, {0}, {0}, {0}}; /* four chains of additions instead of a long one */
        for (int64_t n = 0; n < padded; n += 4)
            for (int i = 0; i < 4; i++) {
                vec h = exp_of(time[t] * k->A[n + i]) * k->state[n + i] + inflow * B[n + i];
                k->state[n + i] = h;
                sum[i] += h * C[n + i];
            }
        y[t] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}

static void forward_item(const scan_arguments *a, scratch *s, int64_t b, int64_t from, int64_t to) {
    int64_t chunks = (a->steps + CHUNK - 1) / CHUNK;
    vec u[CHUNK], time[CHUNK], y[CHUNK], z[CHUNK];
    open_blocks(s, a, &a->initial, b, from, to);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t start = chunk * CHUNK, steps = a->steps - start < CHUNK ? a->steps - start : CHUNK;
        load_coefficients(s, a, b, start, steps);
        for (int64_t d = from; d < to; d += LANES) {
            block *k = &s->blocks[(d - from) / LANES];
            int64_t lanes = to - d < LANES ? to - d : LANES;
            if (a->states.data)
                store_states(k->state, a->states.data + (b * chunks + chunk) * a->state_size * a->channels, a, d, lanes);
            load_tile(u, &a->u, b, d, lanes, start, steps);
            load_tile(time, &a->delta, b, d, lanes, start, steps);
            for (int64_t t = 0; t < steps; t++) {
                time[t] += k->bias;
                if (a->softplus) time[t] = softplus_of(time[t]);
            }
            if (s->padded == 16)
                forward_steps(k, s, 16, steps, time, u, y);
            else
                forward_steps(k, s, s->padded, steps, time, u, y);
            for (int64_t t = 0; t < steps; t++) y[t] += k->D * u[t];
            if (a->z.data) {
                load_tile(z, &a->z, b, d, lanes, start, steps);
                for (int64_t t = 0; t < steps; t++) y[t] *= z[t] * sigmoid_of(z[t]);
            }
            store_tile(y, &a->out, b, d, lanes, start, steps);
        }
    }
    for (int64_t d = from; d < to; d += LANES)
        store_states(s->blocks[(d - from) / LANES].state, a->last.data + b * a->state_size * a->channels, a, d,
                     to - d < LANES ? to - d : LANES);
}

/* ---- backward ---- */

INLINE void recompute_steps(const block *k, scratch *s, const int64_t padded, int64_t steps, const vec *time,
                            const vec *u) {
    for (int64_t t = 0; t < steps; t++) {
        const float *B = s->B + t * padded;
        const vec *before = s->history + t * padded;
        vec *after = s->history + (t + 1) * padded, *decay = s->decay + t * padded;
        vec inflow = time[t] * u[t];
        for (int64_t n = 0; n < padded; n++) {
            decay[n] = exp_of(time[t] * k->A[n]);
            after[n] = decay[n] * before[n] + inflow * B[n];
        }
    }
}

/* On the way back: grad_time without the part through the inflow, grad_inflow, and y before D and the gate. */
INLINE void backward_steps(block *k, scratch *s, const int64_t padded, int64_t steps, const vec *time, const vec *u,
                           const vec *grad_y, vec *grad_time, vec *grad_inflow, vec *y) {
    for (int64_t t = steps - 1; t >= 0; t--) {
        const float *B = s->B + t * padded, *C = s->C + t * padded;
        const vec *before = s->history + t * padded, *after = before + padded, *decay = s->decay + t * padded;
        vec *grad_B = s->grad_B + t * padded, *grad_C = s->grad_C + t * padded;
        vec inflow = time[t] * u[t];
        vec through_A[2] = {{0}, {0}}, through_B[2] = {{0}, {0}}, read[2] = {{0}, {0}};
        for (int64_t n = 0; n < padded; n += 2)
            for (int i = 0; i < 2; i++) {
                vec g = k->state[n + i] + grad_y[t] * C[n + i];
                read[i] += after[n + i] * C[n + i];
                grad_C[n + i] += grad_y[t] * after[n + i];
                grad_B[n + i] += inflow * g;
                through_B[i] += g * B[n + i];
                vec back = g * decay[n + i];
                vec exponent = back * before[n + i];
                through_A[i] += exponent * k->A[n + i];
                k->grad_A[n + i] += exponent * time[t];
                k->state[n + i] = back;
            }
        grad_time[t] = through_A[0] + through_A[1];
        grad_inflow[t] = through_B[0] + through_B[1];
        y[t] = read[0] + read[1];
    }
}

static void backward_block(const scan_arguments *a, scratch *s, block *k, int64_t b, int64_t d, int64_t lanes,
                           int64_t chunk, int64_t chunks) {
    int64_t start = chunk * CHUNK, steps = a->steps - start < CHUNK ? a->steps - start : CHUNK;
    vec u[CHUNK], raw[CHUNK], time[CHUNK], y[CHUNK], z[CHUNK], grad_out[CHUNK], grad_y[CHUNK];
    vec grad_time[CHUNK], grad_inflow[CHUNK];
    const float *state = a->states.data + (b * chunks + chunk) * a->state_size * a->channels + d;
    for (int64_t n = 0; n < s->padded; n++)
        s->history[n] = n < a->state_size ? load_lanes(state + n * a->channels, 1, lanes) : (vec){0};
    load_tile(u, &a->u, b, d, lanes, start, steps);
    load_tile(raw, &a->delta, b, d, lanes, start, steps);
    load_tile(grad_out, &a->grad_out, b, d, lanes, start, steps);
    for (int64_t t = 0; t < steps; t++) {
        raw[t] += k->bias;
        time[t] = a->softplus ? softplus_of(raw[t]) : raw[t];
        grad_y[t] = grad_out[t];
    }
    if (a->z.data) {
        load_tile(z, &a->z, b, d, lanes, start, steps);
        for (int64_t t = 0; t < steps; t++) grad_y[t] *= z[t] * sigmoid_of(z[t]);
    }
    if (s->padded == 16) {
        recompute_steps(k, s, 16, steps, time, u);
        backward_steps(k, s, 16, steps, time, u, grad_y, grad_time, grad_inflow, y);
    } else {
        recompute_steps(k, s, s->padded, steps, time, u);
        backward_steps(k, s, s->padded, steps, time, u, grad_y, grad_time, grad_inflow, y);
    }
    if (a->z.data) {
        for (int64_t t = 0; t < steps; t++) {
            vec open = sigmoid_of(z[t]);
            z[t] = grad_out[t] * (y[t] + k->D * u[t]) * open * (1.0f + z[t] * (1.0f - open));
        }
        store_tile(z, &a->grad_z, b, d, lanes, start, steps);
    }
    vec grad_D = {0}, grad_bias = {0};
    for (int64_t t = 0; t < steps; t++) {
        grad_D += grad_y[t] * u[t];
        grad_time[t] += grad_inflow[t] * u[t];
        if (a->softplus) grad_time[t] *= sigmoid_of(raw[t]);
        grad_bias += grad_time[t];
        grad_inflow[t] = grad_inflow[t] * time[t] + grad_y[t] * k->D; /* now the gradient of u */
    }
    k->grad_D += grad_D;
    k->grad_bias += grad_bias;
    store_tile(grad_inflow, &a->grad_u, b, d, lanes, start, steps);
    store_tile(grad_time, &a->grad_delta, b, d, lanes, start, steps);
}

static void backward_item(const scan_arguments *a, scratch *s, int64_t b, int64_t group, int64_t from, int64_t to) {
    int64_t chunks = (a->steps + CHUNK - 1) / CHUNK;
    open_blocks(s, a, &a->grad_last, b, from, to);
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
        int64_t start = chunk * CHUNK, steps = a->steps - start < CHUNK ? a->steps - start : CHUNK;
        load_coefficients(s, a, b, start, steps);
        memset(s->grad_B, 0, (size_t)(steps * s->padded) * sizeof(vec));
        memset(s->grad_C, 0, (size_t)(steps * s->padded) * sizeof(vec));
        for (int64_t d = from; d < to; d += LANES)
            backward_block(a, s, &s->blocks[(d - from) / LANES], b, d, to - d < LANES ? to - d : LANES, chunk, chunks);
        int64_t at = ((b * a->groups + group) * a->steps + start) * a->state_size;
        for (int64_t t = 0; t < steps; t++)
            for (int64_t n = 0; n < a->state_size; n++) {
                a->grad_B.data[at + t * a->state_size + n] = sum_of_lanes(s->grad_B[t * s->padded + n]);
                a->grad_C.data[at + t * a->state_size + n] = sum_of_lanes(s->grad_C[t * s->padded + n]);
            }
    }
    for (int64_t d = from; d < to; d += LANES) {
        block *k = &s->blocks[(d - from) / LANES];
        int64_t lanes = to - d < LANES ? to - d : LANES;
        store_states(k->grad_A, a->grad_A.data + b * a->state_size * a->channels, a, d, lanes);
        store_states(k->state, a->grad_initial.data + b * a->state_size * a->channels, a, d, lanes);
        store_lanes(k->grad_D, a->grad_D.data + b * a->channels + d, lanes);
        store_lanes(k->grad_bias, a->grad_bias.data + b * a->channels + d, lanes);
    }
}

/* ---- threads ---- */

/* Cut `bytes` off a block of memory; with base NULL only the size is counted. */
static void *cut(char *base, size_t *used, size_t bytes) {
    void *piece = base ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return piece;
}

static size_t lay_out(scratch *s, char *base, const scan_arguments *a, int backward) {
    size_t used = 0, blocks = (size_t)(a->group_channels / LANES), padded = (size_t)((a->state_size + 3) / 4 * 4);
    s->padded = (int64_t)padded;
    s->blocks = cut(base, &used, blocks * sizeof(block));
    for (size_t i = 0; i < blocks; i++) {
        vec *pieces[3];
        for (int j = 0; j < 3; j++) pieces[j] = cut(base, &used, padded * sizeof(vec));
        if (base) {
            s->blocks[i].state = pieces[0];
            s->blocks[i].A = pieces[1];
            s->blocks[i].grad_A = pieces[2];
        }
    }
    s->B = cut(base, &used, CHUNK * padded * sizeof(float));
    s->C = cut(base, &used, CHUNK * padded * sizeof(float));
    if (backward) {
        s->decay = cut(base, &used, CHUNK * padded * sizeof(vec));
        s->history = cut(base, &used, (CHUNK + 1) * padded * sizeof(vec));
        s->grad_B = cut(base, &used, CHUNK * padded * sizeof(vec));
        s->grad_C = cut(base, &used, CHUNK * padded * sizeof(vec));
    }
    return used;
}

static void *work(void *argument) {
    job *j = argument;
    const scan_arguments *a = j->arguments;
    scratch s;
    char *memory = aligned_alloc(64, lay_out(&s, NULL, a, j->backward));
    if (!memory) {
        j->out_of_memory = 1;
        return NULL;
    }
    size_t used = lay_out(&s, memory, a, j->backward);
    memset(memory + ((char *)s.B - memory), 0, used - (size_t)((char *)s.B - memory)); /* the surplus of N is 0 */
#if defined(__x86_64__)
    /* numbers too small for the normal format count as 0: some processors need 100 cycles for each */
    unsigned int control = _mm_getcsr();
    _mm_setcsr(control | 0x8040);
#endif
    for (;;) {
        int64_t item = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED);
        if (item >= a->batch * a->groups) break;
        int64_t b = item / a->groups, group = item % a->groups, from = group * a->group_channels;
        int64_t to = from + a->group_channels < a->channels ? from + a->group_channels : a->channels;
        if (j->backward)
            backward_item(a, &s, b, group, from, to);
        else
            forward_item(a, &s, b, from, to);
    }
#if defined(__x86_64__)
    _mm_setcsr(control);
#endif
    free(memory);
    return NULL;
}

/* Threads are made per call: it costs some 20 microseconds, and nothing of them survives into a forked process. */
#define MOST_THREADS 256

/* 0, or 1 if there was no memory. */
int scan_run(const scan_arguments *arguments, int backward) {
    job j = {arguments, backward, 0, 0};
    pthread_t others[MOST_THREADS];
    int64_t items = arguments->batch * arguments->groups, wanted = arguments->threads, started = 0;
    if (wanted > items) wanted = items;
    if (wanted > MOST_THREADS) wanted = MOST_THREADS;
    /* a thread that cannot be started only leaves its items to the others */
    while (started < wanted - 1 && pthread_create(&others[started], NULL, work, &j) == 0) started++;
    work(&j);
    for (int64_t i = 0; i < started; i++) pthread_join(others[i], NULL);
    return j.out_of_memory;
}

int scan_lanes(void) { return LANES; }
int scan_chunk(void) { return CHUNK; }
