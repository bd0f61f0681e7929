/* What a bundle may need of the CPU beyond its architecture, as edgeseg.runtime.cpu. */
#include <string.h>

#include "internal.h"

/* Leaf 7, by sub-leaf and register. */
enum { AVX512_VNNI = 1 << 11, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25 };
enum { AVX_VNNI = 1 << 4, AVX512_BF16 = 1 << 5 };
/* XCR0: the registers that the system saves for a process. */
enum { HAS_AVX = 0x6, HAS_AVX512 = 0xe6, HAS_AMX = 0x60000 };

static const struct {
    const char *name, *flags;
    unsigned bit;
} features[] = {
    {"vnni", "avx512_vnni or avx_vnni", ES_CPU_VNNI},
    {"bf16", "avx512_bf16 or amx_bf16", ES_CPU_BF16},
    {"amx", "amx_bf16+amx_int8+amx_tile", ES_CPU_AMX},
};

unsigned es_cpu_read(uint32_t ecx7, uint32_t edx7, uint32_t eax71, uint64_t xcr0) {
    bool avx = (xcr0 & HAS_AVX) == HAS_AVX, avx512 = (xcr0 & HAS_AVX512) == HAS_AVX512;
    bool tile = (xcr0 & HAS_AMX) == HAS_AMX && (edx7 & AMX_TILE) != 0;
    bool tile_bf16 = tile && (edx7 & AMX_BF16) != 0;
    unsigned found = 0;
    if ((avx512 && (ecx7 & AVX512_VNNI) != 0) || (avx && (eax71 & AVX_VNNI) != 0))
        found |= ES_CPU_VNNI;
    if ((avx512 && (eax71 & AVX512_BF16) != 0) || tile_bf16) found |= ES_CPU_BF16;
    if (tile_bf16 && (edx7 & AMX_INT8) != 0) found |= ES_CPU_AMX;
    return found;
}

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

static unsigned features_here(void) {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0, eax71 = 0, unused = 0, low = 0, high = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & 1u << 27) == 0) return 0; /* no XGETBV */
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return 0;
    if (eax >= 1) __get_cpuid_count(7, 1, &eax71, &unused, &unused, &unused);
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return es_cpu_read(ecx, edx, eax71, (uint64_t)high << 32 | low);
}
#else
static unsigned features_here(void) { return 0; } /* none of another architecture is known */
#endif

unsigned es_cpu_need(const char *name) {
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        if (strcmp(features[i].name, name) == 0) return features[i].bit;
    return 0;
}

int es_cpu_lacks(unsigned needs, unsigned has, char *message) {
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        if ((needs & ~has & features[i].bit) != 0)
            return es_fail(message, ES_ERR_CPU_FEATURE,
                           "the bundle needs %s (%s), which this CPU does not have; export for "
                           "x86-cpu in another precision", features[i].name, features[i].flags);
    return ES_OK;
}

int es_cpu_require(const es_manifest *manifest, char *message) {
    if (*manifest->unknown_need != '\0')
        return es_fail(message, ES_ERR_CPU_FEATURE,
                       "the bundle needs '%s' of the CPU, which this library does not know; update "
                       "it, or export for x86-cpu", manifest->unknown_need);
    return manifest->needs == 0 ? ES_OK : es_cpu_lacks(manifest->needs, features_here(), message);
}
