#include "coordinator/tokenizer/chat_fingerprint.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

/* How a template's text is cut: transformers trims the newline after a block and the blanks
 * before one (trim_blocks, lstrip_blocks), and so does this. */
enum tag_kind { TAG_NONE, TAG_BLOCK = '%', TAG_PRINT = '{', TAG_COMMENT = '#' };

struct tag {
    enum tag_kind kind;
    const char *begin, *end; /* with its braces */
    const char *body, *body_end;
    bool trims_before, keeps_before, trims_after;
};

/* FNV-1a, 64 bits. */
static const uint64_t hash_begin = 0xcbf29ce484222325U;

enum { END_OF_TOKEN = 0x1f, END_OF_TAG = 0x1e, STRING_MARK = 0x1d };

static void hash_bytes(uint64_t *hash, const char *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        *hash = (*hash ^ (unsigned char)data[i]) * 0x100000001b3U;
    }
}

static void hash_byte(uint64_t *hash, int byte)
{
    char data = (char)byte;

    hash_bytes(hash, &data, 1);
}

/* ---- tags ---- */

/* The closing quote of the string that begins here, or NULL. */
static const char *string_end(const char *at, const char *end)
{
    char quote = *at;

    for (at++; at < end && *at != quote; at++) {
        at += *at == '\\';
    }
    return at < end ? at : NULL;
}

/* Where "%}" or "}}" begins; strings and braces inside are stepped over. */
static const char *find_close(const char *at, const char *end, char kind)
{
    int braces = 0;

    for (; at + 1 < end; at++) {
        if (*at == '\'' || *at == '"') {
            at = string_end(at, end);
            if (!at) {
                return NULL;
            }
        } else if (braces == 0 && *at == (kind == '{' ? '}' : '%') && at[1] == '}') {
            return at;
        } else {
            braces += (*at == '{') - (*at == '}');
        }
    }
    return NULL;
}

static const char *find_open(const char *at, const char *end)
{
    for (; at + 1 < end; at++) {
        if (*at == '{' && (at[1] == '%' || at[1] == '{' || at[1] == '#')) {
            return at;
        }
    }
    return end;
}

/* The next tag; out->begin is `end` and the kind TAG_NONE when there is none. */
static status next_tag(struct tag *out, const char *at, const char *end)
{
    *out = (struct tag){.kind = TAG_NONE, .begin = find_open(at, end), .end = end};
    if (out->begin == end) {
        return STATUS_OK;
    }
    char kind = out->begin[1];
    const char *body = out->begin + 2;
    const char *close =
        kind == '#' ? memmem(body, (size_t)(end - body), "#}", 2) : find_close(body, end, kind);
    if (!close) {
        return status_fail(STATUS_INVALID, "a tag does not end");
    }
    out->kind = kind == '%' ? TAG_BLOCK : kind == '#' ? TAG_COMMENT : TAG_PRINT;
    out->end = close + 2;
    out->trims_before = body < close && *body == '-';
    out->keeps_before = body < close && *body == '+';
    out->body = body + (out->trims_before || out->keeps_before);
    out->trims_after = close > out->body && close[-1] == '-';
    out->body_end = close - (out->trims_after || (close > out->body && close[-1] == '+'));
    return STATUS_OK;
}

/* ---- literal text between tags ---- */

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Are newlines after it and blanks before it trimmed? */
static bool is_quiet(const struct tag *tag)
{
    return tag->kind == TAG_BLOCK || tag->kind == TAG_COMMENT;
}

static const char *trim_begin(const char *begin, const char *end, const struct tag *before)
{
    while (before->trims_after && begin < end && is_space(*begin)) {
        begin++;
    }
    return begin + (!before->trims_after && is_quiet(before) && begin < end && *begin == '\n');
}

static const char *trim_end(const char *begin, const char *end, bool starts_line,
                            const struct tag *after)
{
    const char *line = end;

    while (after->trims_before && end > begin && is_space(end[-1])) {
        end--;
    }
    if (after->kind == TAG_NONE && end > begin && end[-1] == '\n') {
        return end - 1; /* the last newline of a template is not part of it */
    }
    if (after->trims_before || after->keeps_before || !is_quiet(after)) {
        return end;
    }
    while (line > begin && (line[-1] == ' ' || line[-1] == '\t')) {
        line--;
    }
    return (line == begin ? starts_line : line[-1] == '\n') ? line : end;
}

static void hash_literal(uint64_t *hash, const char *begin, const char *end,
                         const struct tag *before, const struct tag *after)
{
    const char *text = trim_begin(begin, end, before);
    bool starts_line = before->kind == TAG_NONE || (text > begin && text[-1] == '\n');

    begin = text;
    end = trim_end(begin, end, starts_line, after);
    hash_bytes(hash, begin, (size_t)(end - begin));
    if (end > begin) {
        hash_byte(hash, END_OF_TAG);
    }
}

/* ---- what is inside a tag ---- */

struct token {
    const char *begin, *end;
    char kind; /* 's' string without its quotes, 'w' word, 'o' operator character */
};

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || c == '_' || (unsigned char)c >= 0x80;
}

static bool next_token(struct token *out, const char **at, const char *end)
{
    while (*at < end && is_space(**at)) {
        (*at)++;
    }
    if (*at == end) {
        return false;
    }
    const char *begin = *at;
    if (*begin == '\'' || *begin == '"') {
        const char *quote = string_end(begin, end);
        *out = (struct token){begin + 1, quote ? quote : end, 's'};
        *at = quote ? quote + 1 : end;
        return true;
    }
    while (*at < end && is_word(**at)) {
        (*at)++;
    }
    *at += *at == begin;
    *out = (struct token){begin, *at, is_word(*begin) ? 'w' : 'o'};
    return true;
}

static bool token_is(const struct token *token, char kind, const char *text)
{
    size_t bytes = strlen(text);

    return token->kind == kind && (size_t)(token->end - token->begin) == bytes &&
           memcmp(token->begin, text, bytes) == 0;
}

/* A string as its characters: '\n' written as an escape or as itself is the same. */
static void hash_string(uint64_t *hash, const struct token *token)
{
    static const char escapes[] = "n\nt\tr\r\\\\''\"\"";

    hash_byte(hash, STRING_MARK);
    for (const char *at = token->begin; at < token->end; at++) {
        const char *escape = NULL;
        for (const char *e = escapes; *at == '\\' && at + 1 < token->end && *e; e += 2) {
            escape = at[1] == *e ? e + 1 : escape;
        }
        hash_byte(hash, escape ? *escape : *at);
        at += escape != NULL;
    }
    hash_byte(hash, STRING_MARK);
}

struct tag_words {
    struct token first;
    bool has_tools, has_ipython;
    bool is_negated; /* the condition is not (...) */
};

static bool mentions_tools(const struct token *token)
{
    size_t bytes = (size_t)(token->end - token->begin);

    return token->kind != 'o' && memmem(token->begin, bytes, "tool", 4) != NULL && bytes <= 24;
}

static struct tag_words read_words(const struct tag *tag)
{
    struct tag_words words = {.first = {tag->body, tag->body, 'o'}};
    const char *at = tag->body;
    struct token token;

    for (int i = 0; next_token(&token, &at, tag->body_end); i++) {
        if (i == 0) {
            words.first = token;
        }
        if (i == 1 && token_is(&token, 'w', "not")) {
            words.is_negated = true;
        }
        if (i == 2 && !token_is(&token, 'o', "(")) {
            words.is_negated = false;
        }
        words.has_tools |= mentions_tools(&token);
        words.has_ipython |= token_is(&token, 's', "ipython");
    }
    return words;
}

/* Every token of the tag, without the first `skip`. */
static void hash_tokens(uint64_t *hash, const struct tag *tag, int skip)
{
    const char *at = tag->body;
    struct token token;

    for (int i = 0; next_token(&token, &at, tag->body_end); i++) {
        if (i < skip) {
            continue;
        }
        if (token.kind == 's') {
            hash_string(hash, &token);
        } else {
            hash_bytes(hash, token.begin, (size_t)(token.end - token.begin));
        }
        hash_byte(hash, END_OF_TOKEN);
        if (token_is(&token, 'w', "raise_exception")) {
            break; /* whatever it says, the conversation is refused */
        }
    }
    hash_byte(hash, END_OF_TAG);
}

/* ---- blocks ---- */

struct block {
    bool outer_dropped, dropped;
    bool is_written; /* some branch of it counts */
    bool is_if;
};

struct reader {
    uint64_t hash;
    struct block blocks[CHAT_MAX_NESTING];
    int depth;
};

static bool is_dropped(const struct reader *r)
{
    return r->depth > 0 && r->blocks[r->depth - 1].dropped;
}

static void write_condition(struct reader *r, const char *word, const struct tag *tag,
                            const struct tag_words *words)
{
    hash_bytes(&r->hash, word, strlen(word));
    hash_byte(&r->hash, END_OF_TOKEN);
    if (words->has_tools && !words->has_ipython) {
        hash_bytes(&r->hash, "\001no tools\001", 10);
    } else {
        hash_tokens(&r->hash, tag, 1);
    }
}

static void take_branch(struct reader *r, const struct tag *tag, const struct tag_words *words)
{
    struct block *block = &r->blocks[r->depth - 1];

    block->dropped =
        block->outer_dropped || (words->has_tools && !words->has_ipython && !words->is_negated);
    if (!block->dropped) {
        write_condition(r, block->is_written ? "elif" : "if", tag, words);
        block->is_written = true;
    }
}

static status open_block(struct reader *r, const struct tag *tag, const struct tag_words *words)
{
    bool is_if = token_is(&words->first, 'w', "if");
    bool outer = is_dropped(r);

    if (r->depth == CHAT_MAX_NESTING) {
        return status_fail(STATUS_INVALID, "more than %d blocks in blocks", CHAT_MAX_NESTING);
    }
    r->blocks[r->depth++] = (struct block){outer, outer, false, is_if};
    if (is_if) {
        take_branch(r, tag, words);
    } else if (!outer) {
        hash_tokens(&r->hash, tag, 0);
    }
    return STATUS_OK;
}

static status close_block(struct reader *r, const struct tag *tag, bool is_if)
{
    if (r->depth == 0 || r->blocks[r->depth - 1].is_if != is_if) {
        return status_fail(STATUS_INVALID, "a block ends that did not begin");
    }
    struct block *block = &r->blocks[--r->depth];
    if (is_if ? block->is_written : !block->outer_dropped) {
        hash_tokens(&r->hash, tag, 0);
    }
    return STATUS_OK;
}

static status take_else(struct reader *r, const struct tag *tag, const struct tag_words *words)
{
    if (r->depth == 0) {
        return status_fail(STATUS_INVALID, "an else without its block");
    }
    if (token_is(&words->first, 'w', "elif")) {
        take_branch(r, tag, words);
        return STATUS_OK;
    }
    struct block *block = &r->blocks[r->depth - 1];
    block->dropped = block->outer_dropped;
    if ((block->is_written || !block->is_if) && !block->dropped) {
        hash_tokens(&r->hash, tag, 0);
    }
    return STATUS_OK;
}

static status take_block_tag(struct reader *r, const struct tag *tag)
{
    const struct tag_words words = read_words(tag);
    const struct token *first = &words.first;

    if (token_is(first, 'w', "if") || token_is(first, 'w', "for")) {
        return open_block(r, tag, &words);
    }
    if (token_is(first, 'w', "elif") || token_is(first, 'w', "else")) {
        return take_else(r, tag, &words);
    }
    if (token_is(first, 'w', "endif") || token_is(first, 'w', "endfor")) {
        return close_block(r, tag, token_is(first, 'w', "endif"));
    }
    if (!is_dropped(r)) {
        hash_tokens(&r->hash, tag, 0);
    }
    return STATUS_OK;
}

status chat_fingerprint(uint64_t *out, const char *text, size_t bytes)
{
    struct reader r = {.hash = hash_begin};
    struct tag before = {.kind = TAG_NONE}, tag;
    const char *at = text, *end = text + bytes;

    do {
        status st = next_tag(&tag, at, end);
        if (st) {
            return st;
        }
        if (!is_dropped(&r)) {
            hash_literal(&r.hash, at, tag.begin, &before, &tag);
        }
        if (tag.kind == TAG_BLOCK) {
            st = take_block_tag(&r, &tag);
        } else if (tag.kind == TAG_PRINT && !is_dropped(&r)) {
            hash_byte(&r.hash, STRING_MARK);
            hash_tokens(&r.hash, &tag, 0);
        }
        if (st) {
            return st;
        }
        before = tag;
        at = tag.end;
    } while (tag.kind != TAG_NONE);
    if (r.depth > 0) {
        return status_fail(STATUS_INVALID, "a block does not end");
    }
    *out = r.hash;
    return STATUS_OK;
}
