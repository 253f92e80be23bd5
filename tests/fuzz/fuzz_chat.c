/* Any bytes as a model's chat template, and as its tokenizer_config.json. */
#include "coordinator/tokenizer/chat.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(struct chat *chat)
{
    const struct chat_message message = {"user", " hello ", 4, 7};
    char *text;
    size_t bytes;

    if (chat_render(chat, &message, 1, &text, &bytes) == STATUS_OK) {
        assert(chat_name(chat) && memmem(text, bytes, "hello", 5));
        free(text);
    } else {
        assert(!chat_name(chat) && chat_refusal(chat)[0]);
        assert(strstr(status_text(), "send text instead"));
    }
    chat_free(chat);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char config[] = "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\"}}";
    struct chat *chat;

    if (chat_parse(&chat, config, sizeof(config) - 1, (const char *)data, size) == STATUS_OK) {
        check(chat);
    }
    if (chat_parse(&chat, (const char *)data, size, NULL, 0) == STATUS_OK) {
        check(chat);
    }
    return 0;
}
