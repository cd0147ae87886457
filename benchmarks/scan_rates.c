/* How fast one core runs the two things a selective scan is made of, on data in registers or the first cache. */
#include "../manticore/kernels/scan_vectors.h"

#define RESIDENT 64 /* vectors: 4 KiB at most */

/* `count` times the exponential of RESIDENT vectors. */
void run_exp(int64_t count) {
    vec x[RESIDENT], y[RESIDENT];
    for (int i = 0; i < RESIDENT; i++) x[i] = splat(-0.01f * (float)i);
    for (int64_t k = 0; k < count; k++) {
        for (int i = 0; i < RESIDENT; i++) y[i] = exp_of(x[i]);
        __asm__ volatile("" : : "r"(x), "r"(y) : "memory"); /* neither hoisted nor dropped */
    }
}

/* `count` times RESIDENT multiply-adds, in eight independent chains. */
void run_multiply_add(int64_t count) {
    vec a = splat(0.5f), b = splat(1.0f), c[8];
    for (int i = 0; i < 8; i++) c[i] = splat((float)i);
    for (int64_t k = 0; k < count * (RESIDENT / 8); k++)
        for (int i = 0; i < 8; i++) c[i] = c[i] * a + b;
    __asm__ volatile("" : : "r"(c) : "memory");
}

int resident_lanes(void) { return RESIDENT * LANES; }
