#include "cli/bench/html.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool reserve(struct html *html, size_t more)
{
    if (html->failed || more > HTML_MAX_BYTES - html->bytes - 1) {
        html->failed = true;
        return false;
    }
    size_t need = html->bytes + more + 1;
    if (need <= html->capacity) {
        return true;
    }
    size_t target = need > html->capacity * 2 ? need : html->capacity * 2;
    char *bigger = realloc(html->data, target);
    if (!bigger) {
        html->failed = true;
        return false;
    }
    html->data = bigger;
    html->capacity = target;
    return true;
}

void html_add(struct html *html, const char *format, ...)
{
    va_list args;
    va_list again;

    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    if (n >= 0 && reserve(html, (size_t)n)) {
        vsnprintf(html->data + html->bytes, (size_t)n + 1, format, again);
        html->bytes += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

void html_text(struct html *html, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&':
            html_add(html, "&amp;");
            break;
        case '<':
            html_add(html, "&lt;");
            break;
        case '>':
            html_add(html, "&gt;");
            break;
        case '"':
            html_add(html, "&quot;");
            break;
        case '\'':
            html_add(html, "&#39;");
            break;
        default:
            if ((unsigned char)*text >= 0x20 || *text == '\n' || *text == '\t') {
                html_add(html, "%c", *text);
            }
        }
    }
}

status html_finish(const struct html *html)
{
    return html->failed || !html->data ? status_fail(STATUS_EXHAUSTED, "no memory for the page")
                                       : STATUS_OK;
}

void html_free(struct html *html)
{
    free(html->data);
    *html = (struct html){0};
}
