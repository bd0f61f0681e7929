/* A stand-in for libcuda.so.1: one GPU whose memory is the host's, for tests that have none.
 * Work in a stream is done when it is put there. Event number n is reached n ms after the first. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int live, in_context, events, clock_ms;

int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGetCount(int *count) { return *count = getenv("FAKE_GPUS") ? atoi(getenv("FAKE_GPUS")) : 1, 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &live, device; }
int cuCtxSetCurrent(void *context) { return in_context = context == &live, !in_context; }
int cuDeviceGetAttribute(int *value, int which, int device)
{
    *value = which == 75 ? 8 : which == 76 ? 7 : -1;
    return device;
}
int cuDeviceGetName(char *name, int length, int device) { return strncpy(name, "Fake GPU", length), device; }
int cuDriverGetVersion(int *version) { return *version = 12060, 0; }
static int allocate(void **address, size_t size)
{
    if (!in_context) return 201; /* CUDA_ERROR_INVALID_CONTEXT */
    if (size > (size_t)(getenv("FAKE_LARGEST") ? atoi(getenv("FAKE_LARGEST")) : 1 << 30)) return 2;
    live++;
    return *address = malloc(size), 0;
}
static int release(void *address) { return free(address), live--, 0; }
int cuMemAlloc_v2(void **address, size_t size) { return allocate(address, size); }
int cuMemFree_v2(void *address) { return release(address); }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) { return (int)flags + allocate(address, size); }
int cuMemFreeHost(void *address) { return release(address); }
int cuStreamCreate(void **stream, unsigned flags) { return flags == 1 ? allocate(stream, 1) : 1; }
int cuStreamDestroy_v2(void *stream) { return release(stream); }
int cuEventCreate(void **event, unsigned flags) { return events++, (int)flags + allocate(event, sizeof(int)); }
int cuEventDestroy_v2(void *event) { return release(event); }
int cuEventRecord(void *event, void *stream)
{
    static const int step_ms[] = {0, 2, 5, 3}; /* nothing, to the GPU, at work, back */
    static int turn;
    clock_ms += step_ms[turn++ % 4];
    return *(int *)event = clock_ms, stream ? 0 : 400;
}
int cuEventElapsedTime(float *ms, void *first, void *second) { return *ms = (float)(*(int *)second - *(int *)first), 0; }
static int copy(void *to, const void *from, size_t size, void *stream)
{
    return memcpy(to, from, size), stream ? 0 : 400; /* CUDA_ERROR_INVALID_HANDLE */
}
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream) { return copy(to, from, size, stream); }
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, void *stream) { return copy(to, from, size, stream); }
int cuStreamSynchronize(void *stream) { return stream ? 0 : 400; }
int fake_live(void) { return live; }
