// Kernels for whatever the compiler targets by itself: SSE2 or NEON, registers of 16 bytes.
#define ISA base
#define VECTOR_BYTES 16
#if defined(__x86_64__)
#define MAX_VECTORS 2  // 16 registers
#else
#define MAX_VECTORS 4  // 32 registers
#endif
#include "kernels_impl.h"
