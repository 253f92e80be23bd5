#include "coordinator/tokenizer/chat.h"

#include "common/file.h"
#include "coordinator/tokenizer/chat_fingerprint.h"
#include "coordinator/tokenizer/field.h"
#include "coordinator/tokenizer/text.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_PATH = 4096, MAX_TOKEN = 64, MAX_REFUSAL = 400 };

/* Where [INST] templates put the system message. */
enum system_place {
    SYSTEM_REFUSED,
    SYSTEM_FIRST,     /* before the first message */
    SYSTEM_LAST,      /* before the last message, if the user wrote it */
    SYSTEM_LAST_USER, /* before the last message of the user, and every one that equals it */
};

struct inst_style {
    const char *open, *close; /* around what the user says */
    const char *answer, *answered;
    enum system_place system;
    bool trims_answers;
};

static const struct inst_style inst_v01 = {"[INST] ", " [/INST]", "", " ", SYSTEM_REFUSED, false};
static const struct inst_style inst_v02 = {"[INST] ", " [/INST]", "", "", SYSTEM_REFUSED, false};
static const struct inst_style inst_v1 = {" [INST] ", " [/INST]", " ", "", SYSTEM_FIRST, false};
static const struct inst_style inst_v3 = {"[INST] ", "[/INST]", " ", "", SYSTEM_LAST, true};
static const struct inst_style inst_v3_user = {"[INST] ", "[/INST]",        " ",
                                               "",        SYSTEM_LAST_USER, true};
static const struct inst_style inst_tekken = {"[INST]", "[/INST]", "", "", SYSTEM_LAST, false};
static const struct inst_style inst_tekken_user = {"[INST]", "[/INST]",        "",
                                                   "",       SYSTEM_LAST_USER, false};

struct chat {
    const struct family *family; /* NULL: refusal says why */
    char refusal[MAX_REFUSAL];
    char bos[MAX_TOKEN], eos[MAX_TOKEN]; /* empty: not named */
};

struct conversation {
    const struct chat *chat;
    const struct chat_message *messages; /* without the system message that came first */
    const struct chat_message *system;   /* NULL: none */
    size_t n, first;                     /* first: the index of messages[0] in the request */
    struct text_buffer out;
};

typedef status render_function(struct conversation *it);

static render_function render_llama2, render_llama3, render_dated, render_inst, render_smollm2;

struct family {
    uint64_t fingerprint;
    const char *name;
    render_function *render;
    const struct inst_style *inst;
    bool takes_system; /* a system message that comes first is treated apart */
    bool needs_bos, needs_eos;
};

/* Templates as they were published.  tests/tokenizers/chat/README.md says how a line is made. */
static const struct family families[] = {
    {0x69526fb0ac2aab27U, "llama-2", render_llama2, NULL, true, true, true},
    {0xdb972290124c32baU, "llama-3", render_llama3, NULL, false, true, false},
    {0xeaa00d059fb44fabU, "llama-3", render_llama3, NULL, false, true, false},
    {0xfce5228690e37ec5U, "llama-3.1", render_dated, NULL, true, true, false},
    {0x1eb9894b21a82437U, "llama-3.2", render_dated, NULL, true, true, false},
    {0xaf7d320eb15c53f1U, "mistral-7b-v0.1", render_inst, &inst_v01, false, true, true},
    {0xf3000d19dd577d5aU, "mistral-7b-v0.2", render_inst, &inst_v02, false, true, true},
    {0x22afe2d95a905b12U, "mistral-v1", render_inst, &inst_v1, true, true, true},
    {0xc77d2df620eac4f9U, "mistral-v3", render_inst, &inst_v3, true, true, true},
    {0x4fcbf9b624fe1030U, "mistral-v3", render_inst, &inst_v3_user, true, true, true},
    {0x48364abb3aa2b4a0U, "mistral-tekken", render_inst, &inst_tekken, true, true, true},
    {0x90f44d6ca0e5256bU, "mistral-tekken", render_inst, &inst_tekken_user, true, true, true},
    {0x110dc1dadbc0ac2cU, "smollm2", render_smollm2, NULL, false, false, false},
};

/* ---- putting text together ---- */

static status put(struct conversation *it, const char *data, size_t bytes)
{
    if (bytes > CHAT_MAX_RENDERED - it->out.bytes) {
        return status_fail(STATUS_INVALID, "chat: the conversation has more than %d bytes",
                           CHAT_MAX_RENDERED);
    }
    return text_append(&it->out, data, bytes);
}

/* Strings up to a NULL. */
static status put_all(struct conversation *it, const char *const *strings)
{
    status st = STATUS_OK;

    for (; !st && *strings; strings++) {
        st = put(it, *strings, strlen(*strings));
    }
    return st;
}

#define PUT(it, ...) put_all((it), (const char *const[]){__VA_ARGS__, NULL})

/* What Python's str.strip() takes away. */
static bool is_stripped(uint32_t character)
{
    return utf8_is_space(character) || (character >= 0x1c && character <= 0x1f);
}

static struct slice_of_text strip(const char *text, size_t bytes)
{
    size_t size = 0;
    uint32_t character;

    while (bytes && utf8_next(text, bytes, &size, &character) == UTF8_CHARACTER &&
           is_stripped(character)) {
        text += size;
        bytes -= size;
    }
    while (bytes) {
        size_t last = bytes - 1;
        while (last > 0 && ((unsigned char)text[last] & 0xc0) == 0x80) {
            last--;
        }
        if (utf8_next(text + last, bytes - last, &size, &character) != UTF8_CHARACTER ||
            !is_stripped(character)) {
            break;
        }
        bytes = last;
    }
    return (struct slice_of_text){text, bytes};
}

static status put_stripped(struct conversation *it, const struct chat_message *message)
{
    struct slice_of_text text = strip(message->content, message->content_bytes);

    return put(it, text.data, text.bytes);
}

static status put_content(struct conversation *it, const struct chat_message *message)
{
    return put(it, message->content, message->content_bytes);
}

static bool role_is(const struct chat_message *message, const char *role)
{
    return message->role_bytes == strlen(role) &&
           memcmp(message->role, role, message->role_bytes) == 0;
}

/* A role in a sentence: short and printable. */
static const char *role_name(char out[32], const struct chat_message *message)
{
    size_t n = message->role_bytes < 24 ? message->role_bytes : 24;

    for (size_t i = 0; i < n; i++) {
        out[i] = message->role[i];
        if (out[i] < 0x20 || out[i] > 0x7e) {
            out[i] = '?';
        }
    }
    memcpy(out + n, n < message->role_bytes ? "..." : "", n < message->role_bytes ? 4 : 1);
    return out;
}

/* user, assistant, user, ...: as the templates of Llama 2 and Mistral ask. */
static status check_turns(const struct conversation *it)
{
    char role[32];

    for (size_t i = 0; i < it->n; i++) {
        bool is_user = role_is(&it->messages[i], "user");
        if (is_user != (i % 2 == 0)) {
            return status_fail(STATUS_INVALID,
                               "chat.messages[%zu].role is \"%s\"; this model's template wants "
                               "user and assistant in turn%s, the user first",
                               i + it->first, role_name(role, &it->messages[i]),
                               it->chat->family->takes_system ? ", after a system message or none"
                                                              : "");
        }
    }
    return STATUS_OK;
}

/* ---- the families ---- */

/* Both texts are stripped as one: it begins with "<<SYS>>", so only its end is. */
static status put_llama2_system(struct conversation *it, const struct chat_message *message)
{
    status st = PUT(it, "<<SYS>>\n");

    st = st ? st : put_content(it, it->system);
    st = st ? st : PUT(it, "\n<</SYS>>\n\n");
    st = st ? st : put_content(it, message);
    if (!st) {
        it->out.bytes = strip(it->out.data, it->out.bytes).bytes;
    }
    return st;
}

static status put_llama2_question(struct conversation *it, size_t i)
{
    status st = PUT(it, it->chat->bos, "[INST] ");

    if (!st && i == 0 && it->system) {
        st = put_llama2_system(it, &it->messages[i]);
    } else if (!st) {
        st = put_stripped(it, &it->messages[i]);
    }
    return st ? st : PUT(it, " [/INST]");
}

static status put_llama2_answer(struct conversation *it, size_t i)
{
    if (!role_is(&it->messages[i], "assistant")) {
        return STATUS_OK; /* the template passes over other roles in the assistant's place */
    }
    status st = PUT(it, " ");
    st = st ? st : put_stripped(it, &it->messages[i]);
    return st ? st : PUT(it, " ", it->chat->eos);
}

static status render_llama2(struct conversation *it)
{
    status st = check_turns(it);

    for (size_t i = 0; !st && i < it->n; i++) {
        st = i % 2 == 0 ? put_llama2_question(it, i) : put_llama2_answer(it, i);
    }
    return st;
}

static status put_header(struct conversation *it, const char *role, size_t bytes)
{
    status st = PUT(it, "<|start_header_id|>");

    st = st ? st : put(it, role, bytes);
    return st ? st : PUT(it, "<|end_header_id|>\n\n");
}

static status put_llama3_turn(struct conversation *it, const struct chat_message *message)
{
    status st = put_header(it, message->role, message->role_bytes);

    st = st ? st : put_stripped(it, message);
    return st ? st : PUT(it, "<|eot_id|>");
}

static status render_llama3(struct conversation *it)
{
    status st = PUT(it, it->chat->bos);

    for (size_t i = 0; !st && i < it->n; i++) {
        st = put_llama3_turn(it, &it->messages[i]);
    }
    return st ? st : put_header(it, "assistant", 9);
}

/* A JSON string as Python's json.dumps() writes it without ensure_ascii. */
static status put_json(struct conversation *it, const char *text, size_t bytes)
{
    static const char escapes[] = "\"\"\\\\\nn\rr\tt\bb\ff";
    status st = PUT(it, "\"");

    for (size_t i = 0; !st && i < bytes; i++) {
        char escaped[8] = {'\\', 0};
        for (const char *e = escapes; *e; e += 2) {
            escaped[1] = text[i] == *e ? e[1] : escaped[1];
        }
        if (escaped[1]) {
            st = PUT(it, escaped);
        } else if ((unsigned char)text[i] < 0x20) {
            snprintf(escaped, sizeof(escaped), "\\u%04x", (unsigned)(unsigned char)text[i]);
            st = PUT(it, escaped);
        } else {
            st = put(it, text + i, 1);
        }
    }
    return st ? st : PUT(it, "\"");
}

/* Llama 3.1 and 3.2.  The date is the one that the templates themselves fall back to: the same
 * conversation is the same tokens tomorrow. */
static status render_dated(struct conversation *it)
{
    status st = PUT(it, it->chat->bos, "<|start_header_id|>system<|end_header_id|>\n\n",
                    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");

    if (!st && it->system) {
        st = put_stripped(it, it->system);
    }
    st = st ? st : PUT(it, "<|eot_id|>");
    for (size_t i = 0; !st && i < it->n; i++) {
        const struct chat_message *message = &it->messages[i];
        if (!role_is(message, "tool") && !role_is(message, "ipython")) {
            st = put_llama3_turn(it, message);
            continue;
        }
        st = put_header(it, "ipython", 7);
        st = st ? st : put_json(it, message->content, message->content_bytes);
        st = st ? st : PUT(it, "<|eot_id|>");
    }
    return st ? st : put_header(it, "assistant", 9);
}

static bool same_content(const struct chat_message *a, const struct chat_message *b)
{
    return a->content_bytes == b->content_bytes &&
           (!a->content_bytes || memcmp(a->content, b->content, a->content_bytes) == 0);
}

/* Does the system message go into this message of the user? */
static bool takes_system(const struct conversation *it, size_t i)
{
    switch (it->chat->family->inst->system) {
    case SYSTEM_FIRST:
        return i == 0;
    case SYSTEM_LAST:
        return i + 1 == it->n;
    case SYSTEM_LAST_USER: /* turns alternate: the user's last message is one of the last two */
        return same_content(&it->messages[i], &it->messages[(it->n - 1) / 2 * 2]);
    default:
        return false;
    }
}

static status put_question(struct conversation *it, size_t i)
{
    const struct inst_style *style = it->chat->family->inst;
    status st = PUT(it, style->open);

    if (!st && it->system && takes_system(it, i)) {
        st = put_content(it, it->system);
        st = st ? st : PUT(it, "\n\n");
    }
    st = st ? st : put_content(it, &it->messages[i]);
    return st ? st : PUT(it, style->close);
}

static status put_answer(struct conversation *it, size_t i)
{
    const struct inst_style *style = it->chat->family->inst;
    const struct chat_message *message = &it->messages[i];
    char role[32];

    if (!role_is(message, "assistant")) {
        return status_fail(STATUS_INVALID,
                           "chat.messages[%zu].role is \"%s\"; this model's template knows user "
                           "and assistant%s only",
                           i + it->first, role_name(role, message),
                           it->chat->family->takes_system ? ", and system at the start," : "");
    }
    status st = PUT(it, style->answer);
    if (!st) {
        st = style->trims_answers ? put_stripped(it, message) : put_content(it, message);
    }
    return st ? st : PUT(it, it->chat->eos, style->answered);
}

/* Mistral: what the assistant says next comes right after the last [/INST]. */
static status render_inst(struct conversation *it)
{
    status st = check_turns(it);

    if (!st) {
        st = PUT(it, it->chat->bos);
    }
    for (size_t i = 0; !st && i < it->n; i++) {
        st = i % 2 == 0 ? put_question(it, i) : put_answer(it, i);
    }
    return st;
}

static status render_smollm2(struct conversation *it)
{
    status st = STATUS_OK;

    if (it->n && !role_is(&it->messages[0], "system")) {
        st = PUT(it, "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
                     "Hugging Face<|im_end|>\n");
    }
    for (size_t i = 0; !st && i < it->n; i++) {
        const struct chat_message *message = &it->messages[i];
        st = PUT(it, "<|im_start|>");
        st = st ? st : put(it, message->role, message->role_bytes);
        st = st ? st : PUT(it, "\n");
        st = st ? st : put_content(it, message);
        st = st ? st : PUT(it, "<|im_end|>\n");
    }
    return st ? st : PUT(it, "<|im_start|>assistant\n");
}

status chat_render(const struct chat *chat, const struct chat_message *messages, size_t n,
                   char **out, size_t *out_bytes)
{
    struct conversation it = {.chat = chat, .messages = messages, .n = n};

    if (!chat->family) {
        return status_fail(STATUS_UNIMPLEMENTED, "chat: %s; send text instead", chat->refusal);
    }
    if (n && chat->family->takes_system && role_is(&messages[0], "system")) {
        it.system = messages;
        it.messages++;
        it.n--;
        it.first = 1;
    }
    status st = chat->family->render(&it);
    if (st) {
        text_fini(&it.out);
        return st;
    }
    *out = it.out.data;
    *out_bytes = it.out.bytes;
    return STATUS_OK;
}

const char *chat_name(const struct chat *chat)
{
    return chat->family ? chat->family->name : NULL;
}

const char *chat_refusal(const struct chat *chat)
{
    return chat->refusal;
}

void chat_free(struct chat *chat)
{
    free(chat);
}

/* ---- loading ---- */

/* bos_token and eos_token are strings, or objects that hold one. */
static void read_token(char out[MAX_TOKEN], const cJSON *config, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, key);

    if (cJSON_IsObject(item)) {
        item = cJSON_GetObjectItemCaseSensitive(item, "content");
    }
    if (cJSON_IsString(item) && strlen(item->valuestring) < MAX_TOKEN) {
        memcpy(out, item->valuestring, strlen(item->valuestring) + 1);
    }
}

/* chat_template is a text, or a list of named ones of which "default" is for chats. */
static const char *read_template(const cJSON *config)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, "chat_template");
    const cJSON *each;

    if (cJSON_IsString(item)) {
        return item->valuestring;
    }
    cJSON_ArrayForEach(each, item)
    {
        const cJSON *name = cJSON_GetObjectItemCaseSensitive(each, "name");
        const cJSON *text = cJSON_GetObjectItemCaseSensitive(each, "template");
        if (cJSON_IsString(name) && strcmp(name->valuestring, "default") == 0 &&
            cJSON_IsString(text)) {
            return text->valuestring;
        }
    }
    return NULL;
}

static void refuse(struct chat *chat, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void refuse(struct chat *chat, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(chat->refusal, sizeof(chat->refusal), format, arguments);
    va_end(arguments);
    chat->family = NULL;
}

/* Tells whose template it is, once bos and eos are read. */
static void recognise(struct chat *chat, uint64_t fingerprint)
{
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        if (families[i].fingerprint == fingerprint) {
            chat->family = &families[i];
        }
    }
    if (!chat->family) {
        refuse(chat,
               "this model's chat template (fingerprint %016" PRIx64 ") is not one that this "
               "server knows",
               fingerprint);
    } else if (chat->family->needs_bos && !chat->bos[0]) {
        refuse(chat, "this model's chat template needs a bos_token, which its "
                     "tokenizer_config.json does not name");
    } else if (chat->family->needs_eos && !chat->eos[0]) {
        refuse(chat, "this model's chat template needs an eos_token, which its "
                     "tokenizer_config.json does not name");
    }
}

static void recognise_text(struct chat *chat, const char *text, size_t bytes)
{
    uint64_t fingerprint = 0;

    if (bytes > CHAT_MAX_TEMPLATE) {
        refuse(chat, "this model's chat template has %zu bytes; the limit is %d", bytes,
               CHAT_MAX_TEMPLATE);
    } else if (chat_fingerprint(&fingerprint, text, bytes)) {
        refuse(chat, "this model's chat template cannot be read: %s", status_text());
    } else {
        recognise(chat, fingerprint);
    }
}

status chat_open(struct chat **out, uint64_t fingerprint, const char *bos, const char *eos)
{
    struct chat *chat = calloc(1, sizeof(*chat));

    if (!chat) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a chat template");
    }
    snprintf(chat->bos, sizeof(chat->bos), "%s", bos);
    snprintf(chat->eos, sizeof(chat->eos), "%s", eos);
    recognise(chat, fingerprint);
    *out = chat;
    return STATUS_OK;
}

status chat_parse(struct chat **out, const char *config, size_t config_bytes, const char *jinja,
                  size_t jinja_bytes)
{
    struct chat *chat = calloc(1, sizeof(*chat));
    cJSON *root = NULL;

    if (!chat) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a chat template");
    }
    if (config && field_parse(&root, "tokenizer_config.json", config, config_bytes)) {
        refuse(chat, "%s", status_text());
    } else {
        read_token(chat->bos, root, "bos_token");
        read_token(chat->eos, root, "eos_token");
        if (!jinja) {
            jinja = read_template(root);
            jinja_bytes = jinja ? strlen(jinja) : 0;
        }
        if (jinja) {
            recognise_text(chat, jinja, jinja_bytes);
        } else {
            refuse(chat, "this model has no chat template: %s",
                   config ? "its tokenizer_config.json has no chat_template"
                          : "it has no tokenizer_config.json");
        }
    }
    field_free(root);
    *out = chat;
    return STATUS_OK;
}

/* A file that is not there is no failure. */
static status read_optional(char **out, size_t *bytes, const char *dir, const char *name,
                            size_t limit)
{
    char path[MAX_PATH];
    status st = file_join(path, sizeof(path), dir, name);

    if (st || (access(path, F_OK) != 0 && errno == ENOENT)) {
        return st;
    }
    return file_read(out, bytes, path, limit);
}

status chat_load(struct chat **out, const char *model_dir)
{
    char *config = NULL, *jinja = NULL;
    size_t config_bytes = 0, jinja_bytes = 0;
    status st =
        read_optional(&config, &config_bytes, model_dir, "tokenizer_config.json", CHAT_MAX_CONFIG);

    if (!st) {
        st = read_optional(&jinja, &jinja_bytes, model_dir, "chat_template.jinja",
                           CHAT_MAX_TEMPLATE);
    }
    struct failure failure;
    status_save(&failure, st);
    st = chat_parse(out, config, config_bytes, jinja, jinja_bytes);
    if (!st && failure.code) {
        refuse(*out, "%s", failure.text);
    }
    free(config);
    free(jinja);
    return st;
}
