/* Any bytes as a safetensors file: refused, or every tensor lies inside the file. */
#include "worker/safetensors.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors *file;

    if (safetensors_parse(&file, "input", data, size)) {
        assert(status_text()[0] != '\0');
        return 0;
    }
    for (size_t i = 0; i < safetensors_count(file); i++) {
        const struct tensor *tensor = safetensors_at(file, i);
        const uint8_t *begin = tensor->data;

        assert(tensor->dims >= 0 && tensor->dims <= SAFETENSORS_MAX_DIMS);
        assert(tensor->bytes <= size);
        assert(tensor->bytes == 0 ||
               (begin >= data + sizeof(uint64_t) && begin + tensor->bytes <= data + size));
        assert(safetensors_find(file, tensor->name) == tensor);
    }
    safetensors_close(file);
    return 0;
}
