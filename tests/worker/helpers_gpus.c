#include "tests/worker/helpers_gpus.h"

#include "kernels/device.h"
#include "tests/check.h"
#include "tests/worker/helpers_group.h"

#include <stdlib.h>

enum { MOST = 64 };

static struct device *opened[MOST];

int gpus_count(void)
{
    const char *text = getenv("WINNOW_TEST_GPUS");
    long n = text ? strtol(text, NULL, 10) : 0;

    return n < 0 ? 0 : n > MOST ? MOST : (int)n;
}

void gpus_open(int ranks, enum dtype dtype)
{
    if (gpus_count() == 0) {
        return;
    }
    CHECK(ranks <= gpus_count());
    for (int i = 0; i < ranks; i++) {
        const struct device_config config = {.dtype = dtype, .index = i, .threads = 1};
        CHECK_OK(device_open(&opened[i], "cuda", &config));
    }
    group_devices = opened;
}

void gpus_close(void)
{
    for (int i = 0; i < MOST; i++) {
        device_close(opened[i]);
        opened[i] = NULL;
    }
    group_devices = NULL;
}
