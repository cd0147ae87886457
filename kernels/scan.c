/* The selective scan, forward and backward, in float32 for CPUs; see scan_reference.py for what it computes.
 *
 * Vectors run over channels: every lane is one channel, so no sum crosses lanes in the forward pass, and B and C are
 * scalars that all lanes share. Work is cut into items (a batch element and a range of channels) that threads take
 * from a counter; an item writes only its own outputs, so results do not depend on the number of threads. Within an
 * item, time runs in chunks: the forward pass saves the state before each; the backward pass recomputes a chunk's
 * states in a buffer that stays in the cache and walks it backwards.
 *
 * Letters: B batch, D channels, L steps, N state size, T steps of a chunk.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "scan_vectors.h"

#define CHUNK 32
#define SLICE 4 /* states that go through a chunk together */

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
_Static_assert(sizeof(scan_arguments) == 8 * (8 + 23 * 4), "the caller passes 64-bit numbers without gaps");

/* ---- moving between tensors and tiles of [step][lane] ---- */

/* Ask for the tile that comes after this one (its first step; negative: none), so that it is near when its turn comes.
 * Steps or channels lie far apart in memory, which no prefetcher of the processor follows. */
INLINE void prefetch_tile(const view *x, int64_t b, int64_t d, int64_t next) {
    const float *from = x->data + b * x->stride[0] + d * x->stride[1] + next * x->stride[2];
    if (next < 0) return;
    if (x->stride[1] == 1)
        for (int64_t t = 0; t < CHUNK; t++) __builtin_prefetch(from + t * x->stride[2]);
    else
        for (int64_t lane = 0; lane < LANES; lane++)
            for (int64_t t = 0; t < CHUNK; t += 16) __builtin_prefetch(from + lane * x->stride[1] + t);
}

/* Lanes beyond `lanes` are 0. */
INLINE void load_tile(vec *tile, const view *x, int64_t b, int64_t d, int64_t lanes, int64_t start, int64_t steps) {
    const float *from = x->data + b * x->stride[0] + d * x->stride[1] + start * x->stride[2];
    float *to = (float *)tile;
    int64_t done = 0; /* steps that went in whole vectors */
    if (lanes == LANES && x->stride[1] == 1)
        for (; done < steps; done++) tile[done] = *(const loose_vec *)(from + done * x->stride[2]);
    else if (lanes == LANES && x->stride[2] == 1)
        for (; done + LANES <= steps; done += LANES) {
            for (int i = 0; i < LANES; i++) tile[done + i] = *(const loose_vec *)(from + i * x->stride[1] + done);
            transpose_square(tile + done);
        }
    if (lanes < LANES) memset(to, 0, (size_t)steps * sizeof(vec));
    for (int64_t lane = 0; lane < lanes; lane++)
        for (int64_t t = done; t < steps; t++) to[t * LANES + lane] = from[lane * x->stride[1] + t * x->stride[2]];
}

/* What is stored in whole vectors is left in `tile` in no useful order. */
INLINE void store_tile(vec *tile, const view *x, int64_t b, int64_t d, int64_t lanes, int64_t start, int64_t steps) {
    float *to = x->data + b * x->stride[0] + d * x->stride[1] + start * x->stride[2];
    const float *from = (const float *)tile;
    int64_t done = 0;
    if (lanes == LANES && x->stride[1] == 1)
        for (; done < steps; done++) *(loose_vec *)(to + done * x->stride[2]) = tile[done];
    else if (lanes == LANES && x->stride[2] == 1)
        for (; done + LANES <= steps; done += LANES) {
            transpose_square(tile + done);
            for (int i = 0; i < LANES; i++) *(loose_vec *)(to + i * x->stride[1] + done) = tile[done + i];
        }
    for (int64_t lane = 0; lane < lanes; lane++)
        for (int64_t t = done; t < steps; t++) to[lane * x->stride[1] + t * x->stride[2]] = from[t * LANES + lane];
}

/* One vector of channels out of, or into, an array whose channels lie at a stride. */
INLINE vec load_lanes(const float *from, int64_t stride, int64_t lanes) {
    if (lanes == LANES && stride == 1) return *(const loose_vec *)from;
    vec x = {0};
    for (int64_t lane = 0; lane < lanes; lane++) x[lane] = from[lane * stride];
    return x;
}

INLINE void store_lanes(vec x, float *to, int64_t lanes) {
    if (lanes == LANES)
        *(loose_vec *)to = x;
    else
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
    int64_t padded;        /* N rounded up to a multiple of SLICE; the surplus has A = B = C = 0 and stays at 0 */
    block *blocks;
    float *B, *C;          /* [padded / SLICE][T][SLICE] */
    vec *grad_B, *grad_C;  /* [padded / SLICE][T][SLICE], lanes not summed yet */
} scratch;

/* Where the coefficient n of step t lies. */
INLINE int64_t coefficient(int64_t t, int64_t n) { return (n / SLICE * CHUNK + t) * SLICE + n % SLICE; }

static void load_coefficients(float *to, const view *x, int64_t state_size, int64_t b, int64_t start, int64_t steps) {
    const float *from = x->data + b * x->stride[0] + start * x->stride[2];
    for (int64_t t = 0; t < steps; t++)
        for (int64_t n = 0; n < state_size; n++)
            to[coefficient(t, n)] = from[n * x->stride[1] + t * x->stride[2]];
}

/* Sum the lanes of a chunk's gradients. */
static void store_coefficients(const vec *parts, float *to, int64_t state_size, int64_t steps) {
    for (int64_t first = 0; first < steps * state_size; first += LANES) {
        vec rows[LANES];
        int64_t count = steps * state_size - first < LANES ? steps * state_size - first : LANES;
        for (int64_t i = 0; i < LANES; i++)
            rows[i] = i < count ? parts[coefficient((first + i) / state_size, (first + i) % state_size)] : (vec){0};
        store_lanes(sums_of_rows(rows), to + first, count);
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

/* SLICE states at a time go through the whole chunk: they, and their A, stay in registers. */
INLINE void forward_steps(block *k, const scratch *s, int64_t steps, const vec *time, const vec *u, vec *y) {
    for (int64_t t = 0; t < steps; t++) y[t] = (vec){0};
    for (int64_t n = 0; n < s->padded; n += SLICE) {
        const float *B = s->B + coefficient(0, n), *C = s->C + coefficient(0, n);
        vec A[SLICE], h[SLICE];
        for (int i = 0; i < SLICE; i++) A[i] = k->A[n + i], h[i] = k->state[n + i];
        for (int64_t t = 0; t < steps; t++, B += SLICE, C += SLICE) {
            vec inflow = time[t] * u[t], sum = y[t];
            for (int i = 0; i < SLICE; i++) {
                h[i] = exp_of(time[t] * A[i]) * h[i] + inflow * B[i];
                sum += h[i] * C[i];
            }
            y[t] = sum;
        }
        for (int i = 0; i < SLICE; i++) k->state[n + i] = h[i];
    }
}

static void forward_item(const scan_arguments *a, scratch *s, int64_t b, int64_t from, int64_t to) {
    int64_t chunks = (a->steps + CHUNK - 1) / CHUNK;
    vec u[CHUNK], time[CHUNK], y[CHUNK], z[CHUNK];
    open_blocks(s, a, &a->initial, b, from, to);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t start = chunk * CHUNK, steps = a->steps - start < CHUNK ? a->steps - start : CHUNK;
        load_coefficients(s->B, &a->B, a->state_size, b, start, steps);
        load_coefficients(s->C, &a->C, a->state_size, b, start, steps);
        for (int64_t d = from; d < to; d += LANES) {
            block *k = &s->blocks[(d - from) / LANES];
            int64_t lanes = to - d < LANES ? to - d : LANES;
            if (a->states.data)
                store_states(k->state, a->states.data + (b * chunks + chunk) * a->state_size * a->channels, a, d, lanes);
            load_tile(u, &a->u, b, d, lanes, start, steps);
            load_tile(time, &a->delta, b, d, lanes, start, steps);
            int64_t next = chunk + 1 < chunks ? start + CHUNK : -1;
            prefetch_tile(&a->u, b, d, next);
            prefetch_tile(&a->delta, b, d, next);
            if (a->z.data) prefetch_tile(&a->z, b, d, next);
            for (int64_t t = 0; t < steps; t++) {
                time[t] += k->bias;
                if (a->softplus) time[t] = softplus_of(time[t], NULL);
            }
            forward_steps(k, s, steps, time, u, y);
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

/* The states [T + 1][SLICE] of a chunk, of which the first is there, and their decays [T][SLICE]. */
INLINE void recompute_steps(const vec *A, const float *B, int64_t steps, const vec *time, const vec *u, vec *history,
                            vec *decay) {
    vec h[SLICE];
    for (int i = 0; i < SLICE; i++) h[i] = history[i];
    for (int64_t t = 0; t < steps; t++, B += SLICE) {
        vec inflow = time[t] * u[t];
        for (int i = 0; i < SLICE; i++) {
            vec kept = exp_of(time[t] * A[i]);
            h[i] = kept * h[i] + inflow * B[i];
            decay[t * SLICE + i] = kept;
            history[(t + 1) * SLICE + i] = h[i];
        }
    }
}

/* On the way back: grad_time without the part through the inflow, grad_inflow, and y before D and the gate. */
INLINE void backward_steps(block *k, scratch *s, const float *first_states, int64_t channels, int64_t state_size,
                           int64_t lanes, int64_t steps, const vec *time, const vec *u, const vec *grad_y,
                           vec *grad_time, vec *grad_inflow, vec *y) {
    for (int64_t t = 0; t < steps; t++) grad_time[t] = grad_inflow[t] = y[t] = (vec){0};
    for (int64_t n = 0; n < s->padded; n += SLICE) {
        const float *B = s->B + coefficient(0, n), *C = s->C + coefficient(0, n);
        vec *grad_B = s->grad_B + coefficient(0, n), *grad_C = s->grad_C + coefficient(0, n);
        vec history[(CHUNK + 1) * SLICE], decay[CHUNK * SLICE], A[SLICE], grad_A[SLICE], flow[SLICE];
        for (int i = 0; i < SLICE; i++) {
            A[i] = k->A[n + i], grad_A[i] = k->grad_A[n + i], flow[i] = k->state[n + i];
            history[i] = n + i < state_size ? load_lanes(first_states + (n + i) * channels, 1, lanes) : (vec){0};
        }
        recompute_steps(A, B, steps, time, u, history, decay);
        for (int64_t t = steps - 1; t >= 0; t--) {
            const vec *before = history + t * SLICE, *after = before + SLICE;
            vec inflow = time[t] * u[t], through_A = grad_time[t], through_B = grad_inflow[t], read = y[t];
            for (int i = 0; i < SLICE; i++) {
                int64_t at = t * SLICE + i;
                vec g = flow[i] + grad_y[t] * C[at];
                read += after[i] * C[at];
                grad_C[at] += grad_y[t] * after[i];
                grad_B[at] += inflow * g;
                through_B += g * B[at];
                flow[i] = g * decay[at];
                vec exponent = flow[i] * before[i];
                through_A += exponent * A[i];
                grad_A[i] += exponent * time[t];
            }
            grad_time[t] = through_A, grad_inflow[t] = through_B, y[t] = read;
        }
        for (int i = 0; i < SLICE; i++) k->grad_A[n + i] = grad_A[i], k->state[n + i] = flow[i];
    }
}

static void backward_block(const scan_arguments *a, scratch *s, block *k, int64_t b, int64_t d, int64_t lanes,
                           int64_t chunk, int64_t chunks) {
    int64_t start = chunk * CHUNK, steps = a->steps - start < CHUNK ? a->steps - start : CHUNK;
    vec u[CHUNK], time[CHUNK], slope[CHUNK], y[CHUNK], z[CHUNK], open[CHUNK], grad_out[CHUNK], grad_y[CHUNK];
    vec grad_time[CHUNK], grad_inflow[CHUNK];
    const float *state = a->states.data + (b * chunks + chunk) * a->state_size * a->channels + d;
    load_tile(u, &a->u, b, d, lanes, start, steps);
    load_tile(time, &a->delta, b, d, lanes, start, steps);
    load_tile(grad_out, &a->grad_out, b, d, lanes, start, steps);
    prefetch_tile(&a->u, b, d, start - CHUNK);
    prefetch_tile(&a->delta, b, d, start - CHUNK);
    prefetch_tile(&a->grad_out, b, d, start - CHUNK);
    if (a->z.data) prefetch_tile(&a->z, b, d, start - CHUNK);
    for (int64_t t = 0; t < steps; t++) {
        time[t] += k->bias;
        if (a->softplus) time[t] = softplus_of(time[t], &slope[t]);
        grad_y[t] = grad_out[t];
    }
    if (a->z.data) {
        load_tile(z, &a->z, b, d, lanes, start, steps);
        for (int64_t t = 0; t < steps; t++) {
            open[t] = sigmoid_of(z[t]);
            grad_y[t] *= z[t] * open[t];
        }
    }
    backward_steps(k, s, state, a->channels, a->state_size, lanes, steps, time, u, grad_y, grad_time, grad_inflow, y);
    if (a->z.data) {
        for (int64_t t = 0; t < steps; t++)
            z[t] = grad_out[t] * (y[t] + k->D * u[t]) * open[t] * (1.0f + z[t] * (1.0f - open[t]));
        store_tile(z, &a->grad_z, b, d, lanes, start, steps);
    }
    vec grad_D = {0}, grad_bias = {0};
    for (int64_t t = 0; t < steps; t++) {
        grad_D += grad_y[t] * u[t];
        grad_time[t] += grad_inflow[t] * u[t];
        if (a->softplus) grad_time[t] *= slope[t];
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
        load_coefficients(s->B, &a->B, a->state_size, b, start, steps);
        load_coefficients(s->C, &a->C, a->state_size, b, start, steps);
        memset(s->grad_B, 0, (size_t)(CHUNK * s->padded) * sizeof(vec));
        memset(s->grad_C, 0, (size_t)(CHUNK * s->padded) * sizeof(vec));
        for (int64_t d = from; d < to; d += LANES)
            backward_block(a, s, &s->blocks[(d - from) / LANES], b, d, to - d < LANES ? to - d : LANES, chunk, chunks);
        int64_t at = ((b * a->groups + group) * a->steps + start) * a->state_size;
        store_coefficients(s->grad_B, a->grad_B.data + at, a->state_size, steps);
        store_coefficients(s->grad_C, a->grad_C.data + at, a->state_size, steps);
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
    size_t used = 0, blocks = (size_t)(a->group_channels / LANES), padded = (size_t)((a->state_size + SLICE - 1) / SLICE * SLICE);
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
