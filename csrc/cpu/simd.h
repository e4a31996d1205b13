// FM_CLONES before a function compiles it three times (AVX-512, AVX2 with FMA, baseline x86-64) and
// picks at load time, so that one binary runs everywhere and uses what the machine has. Everything
// called inside must be inlined (FM_INLINE, templates, lambdas): a call out leaves the clone.
#pragma once

#include <cstdint>  // on glibc it also defines __GLIBC__

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FM_CLONES
#endif
