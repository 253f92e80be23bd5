/* driver.cc - a stand-in for the NVIDIA driver's library, as far as winnow doctor asks it.
 *
 * WINNOW_CUDA_HOST: "devices=N", "old" (a driver and GPUs of 2018), "no-peers". */
#include <cstdio>
#include <cstdlib>
#include <cstring>

static bool says(const char *word)
{
    const char *words = getenv("WINNOW_CUDA_HOST");

    return words && strstr(words, word);
}

extern "C" {

int cuInit(unsigned)
{
    return says("broken") ? 999 : 0;
}

int cuDriverGetVersion(int *version)
{
    *version = says("old") ? 10000 : 13000;
    return 0;
}

int cuDeviceGetCount(int *count)
{
    const char *words = getenv("WINNOW_CUDA_HOST");
    const char *n = words ? strstr(words, "devices=") : nullptr;

    *count = n ? atoi(n + strlen("devices=")) : 1;
    return 0;
}

int cuDeviceGetName(char *name, int bytes, int)
{
    snprintf(name, static_cast<size_t>(bytes), "emulated GPU");
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int)
{
    *value = attribute == 75 ? (says("old") ? 7 : 9) : 0;
    return 0;
}

int cuDeviceTotalMem_v2(size_t *bytes, int)
{
    *bytes = size_t{80} << 30;
    return 0;
}

int cuDeviceCanAccessPeer(int *can, int, int)
{
    *can = !says("no-peers");
    return 0;
}
}
