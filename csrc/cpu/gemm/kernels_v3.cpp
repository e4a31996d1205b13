// Kernels for x86-64-v3: AVX2 and FMA, 16 registers of 32 bytes.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <cstdint>

#pragma GCC target("avx2,fma")
#define ISA v3
#define VECTOR_BYTES 32
#define MAX_VECTORS 2
#include "kernels_impl.h"
#endif
