// Kernels for x86-64-v4: AVX-512, 32 registers of 64 bytes.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <cstdint>

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512")
#define ISA v4
#define VECTOR_BYTES 64
#define MAX_VECTORS 4
#include "kernels_impl.h"
#endif
