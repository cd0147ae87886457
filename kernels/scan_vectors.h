/* Arithmetic on vectors of float32 that gcc and clang compile for any processor.
 *
 * LANES is set by the build: 16, 8 or 4. A vector wider than the instruction set is correct but slow.
 */
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef float loose_vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

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

/* log(1 + e^x) = max(x, 0) + log1p(v) with v = e^-|x|; log1p(v) = 2 artanh(s) with s = v / (2 + v) <= 1/3.
 * Its slope, the sigmoid of x, comes out of the same exponential: e^min(x, 0) / (1 + v). */
INLINE vec softplus_of(vec x, vec *slope) {
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
    if (slope) {
        ivec rising = x > 0.0f;
        *slope = (vec)((rising & (ivec)splat(1.0f)) | (~rising & (ivec)v)) / (1.0f + v);
    }
    return positive + 2.0f * s * p;
}

/* ---- moving numbers between lanes ---- */

#if defined(__clang__)
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (ivec){__VA_ARGS__})
#endif

/* The lower halves of x and y, lane by lane in turn: x0 y0 x1 y1 ... */
INLINE vec zip_low(vec x, vec y) {
#if LANES == 16
    return SHUFFLE(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif LANES == 8
    return SHUFFLE(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return SHUFFLE(x, y, 0, 4, 1, 5);
#endif
}

/* The same of the upper halves. */
INLINE vec zip_high(vec x, vec y) {
#if LANES == 16
    return SHUFFLE(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif LANES == 8
    return SHUFFLE(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    return SHUFFLE(x, y, 2, 6, 3, 7);
#endif
}

/* Rows become columns: zipping the first half of the rows with the second, log2(LANES) times. */
INLINE void transpose_square(vec *rows) {
    for (int stage = 1; stage < LANES; stage *= 2) {
        vec zipped[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            zipped[2 * i] = zip_low(rows[i], rows[i + LANES / 2]);
            zipped[2 * i + 1] = zip_high(rows[i], rows[i + LANES / 2]);
        }
        for (int i = 0; i < LANES; i++) rows[i] = zipped[i];
    }
}

/* Lane i of the result is the sum of the lanes of row i; the rows are overwritten. */
INLINE vec sums_of_rows(vec *rows) {
    for (int left = LANES / 2; left > 0; left /= 2)
        for (int i = 0; i < left; i++)
            rows[i] = zip_low(rows[i], rows[i + left]) + zip_high(rows[i], rows[i + left]);
    return rows[0];
}
