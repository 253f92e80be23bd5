/* WorkerMessage bytes from whoever reached the worker plane: a refusal with a sentence, or a
 * message within all limits.
 */
#include "coordinator/dispatch.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool holds)
{
    if (!holds) {
        abort();
    }
}

static bool is_line(const char *text, size_t size)
{
    size_t n = strnlen(text, size);

    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f) {
            return false;
        }
    }
    return n < size;
}

static void check_result(const struct step_result *result)
{
    for (uint32_t i = 0; i < result->n_prompts; i++) {
        const struct result_prompt *prompt = &result->prompts[i];
        for (uint32_t k = 0; k < prompt->n_heads; k++) {
            for (uint32_t j = 0; j < prompt->heads[k].n_kept; j++) {
                volatile uint32_t read = prompt->heads[k].kept[j];
                (void)read;
            }
        }
    }
    for (uint32_t i = 0; i < result->n_logits; i++) {
        for (uint32_t k = 0; k < result->logits[i].n_values; k++) {
            volatile float read = result->logits[i].values[k];
            (void)read;
        }
    }
}

static void check(const struct worker_message *message)
{
    switch (message->kind) {
    case MESSAGE_HELLO:
        require(is_line(message->hello.host, sizeof(message->hello.host)));
        require(is_line(message->hello.device, sizeof(message->hello.device)));
        require(is_line(message->hello.build, sizeof(message->hello.build)));
        break;
    case MESSAGE_READY:
        require(is_line(message->ready.device, sizeof(message->ready.device)));
        break;
    case MESSAGE_STORE:
        require(message->entry.key_bytes >= 1 && message->entry.key_bytes <= FLEET_MAX_KEY);
        require(message->entry.value_bytes <= FLEET_MAX_VALUE);
        break;
    case MESSAGE_RESULT:
        check_result(&message->result);
        break;
    case MESSAGE_FAULT:
        require(message->fault.code != STATUS_OK);
        require(is_line(message->fault.text, sizeof(message->fault.text)));
        break;
    case MESSAGE_BEAT:
    case MESSAGE_BYE:
    case MESSAGE_DRAIN:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct worker_message message;

    if (worker_message_open(&message, data, bytes) == STATUS_OK) {
        check(&message);
    } else {
        require(strlen(status_text()) > 0);
    }
    worker_message_close(&message);
    return 0;
}
