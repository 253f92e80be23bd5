#include "common/options.h"

#include "common/file.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_OPTIONS = 64,
    MAX_NAME = 64,
    MAX_FILE = 1 << 20, /* bytes of a configuration file */
    HELP_COLUMN = 32,
};

/* Later sources win; a list is not a mixture of two. */
enum source { FROM_DEFAULT, FROM_FILE, FROM_ENVIRONMENT, FROM_COMMAND_LINE };

struct parser {
    struct options *options;
    enum source sources[MAX_OPTIONS];
};

/* Texts that options point to: they live as long as the process. */
static struct kept {
    struct kept *next;
    char text[];
} * kept_texts;

static status keep_text(const char **out, const char *text)
{
    size_t bytes = strlen(text) + 1;
    struct kept *kept = malloc(sizeof(*kept) + bytes);

    if (!kept) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for an option");
    }
    memcpy(kept->text, text, bytes);
    kept->next = kept_texts;
    kept_texts = kept;
    *out = kept->text;
    return STATUS_OK;
}

/* ---- values ---- */

static status check_range(const struct option *option, double value, const char *text)
{
    if (!(value >= option->min && value <= option->max)) {
        return status_fail(STATUS_INVALID, "%s is not within %.15g..%.15g", text, option->min,
                           option->max);
    }
    return STATUS_OK;
}

static status parse_integer(const struct option *option, const char *text)
{
    char *end;
    int64_t unit = 1;

    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || errno) {
        return status_fail(STATUS_INVALID, "\"%s\" is not a whole number", text);
    }
    if (option->type == OPTION_BYTES && *end) {
        static const char suffixes[] = "kKmMgG";
        const char *found = strchr(suffixes, *end);
        unit = found ? (int64_t)1 << (10 * ((found - suffixes) / 2 + 1)) : 1;
        end += found ? 1 : 0;
    }
    if (*end) {
        return status_fail(STATUS_INVALID, "\"%s\" is not a whole number%s", text,
                           option->type == OPTION_BYTES ? " with an optional K, M or G" : "");
    }
    if (value > INT64_MAX / unit || value < INT64_MIN / unit) {
        return status_fail(STATUS_INVALID, "%s is too large", text);
    }
    *(int64_t *)option->value = value * unit;
    return check_range(option, (double)value * (double)unit, text);
}

static status parse_double(const struct option *option, const char *text)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !isfinite(value)) {
        return status_fail(STATUS_INVALID, "\"%s\" is not a number", text);
    }
    *(double *)option->value = value;
    return check_range(option, value, text);
}

static status parse_flag(const struct option *option, const char *text)
{
    static const char *const words[2][4] = {{"false", "no", "off", "0"},
                                            {"true", "yes", "on", "1"}};

    for (int truth = 0; truth < 2; truth++) {
        for (int i = 0; i < 4; i++) {
            if (strcmp(text, words[truth][i]) == 0) {
                *(bool *)option->value = truth == 1;
                return STATUS_OK;
            }
        }
    }
    return status_fail(STATUS_INVALID, "\"%s\" is not true or false", text);
}

static status append(struct option_list *list, const char *text)
{
    const char *kept = NULL;

    if (list->n == OPTION_LIST_MAX) {
        return status_fail(STATUS_INVALID, "given more than %d times", OPTION_LIST_MAX);
    }
    status st = keep_text(&kept, text);
    if (st) {
        return st;
    }
    list->values[list->n++] = kept;
    return STATUS_OK;
}

static status assign(struct parser *parser, const struct option *option, const char *text,
                     enum source source)
{
    enum source *before = &parser->sources[option - parser->options->table];

    assert(text);
    if (option->type == OPTION_LIST && *before != source) {
        ((struct option_list *)option->value)->n = 0;
    }
    *before = source;
    switch (option->type) {
    case OPTION_STRING:
        return keep_text(option->value, text);
    case OPTION_INT:
    case OPTION_BYTES:
        return parse_integer(option, text);
    case OPTION_DOUBLE:
        return parse_double(option, text);
    case OPTION_FLAG:
        return parse_flag(option, text);
    case OPTION_LIST:
        return append(option->value, text);
    }
    return STATUS_OK;
}

static const struct option *find(const struct options *options, const char *name, size_t bytes)
{
    for (int i = 0; i < options->n; i++) {
        if (strlen(options->table[i].name) == bytes &&
            memcmp(options->table[i].name, name, bytes) == 0) {
            return &options->table[i];
        }
    }
    return NULL;
}

/* ---- the file ---- */

static char *trim(char *text)
{
    while (isspace((unsigned char)*text)) {
        text++;
    }
    char *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1])) {
        end--;
    }
    *end = '\0';
    return text;
}

static status read_line(struct parser *parser, char *line)
{
    char *comment = strchr(line, '#');

    if (comment) {
        *comment = '\0';
    }
    char *name = trim(line);
    if (!*name) {
        return STATUS_OK;
    }
    char *equals = strchr(name, '=');
    if (!equals) {
        return status_fail(STATUS_INVALID, "\"%s\" is not \"name = value\"", name);
    }
    *equals = '\0';
    name = trim(name);
    const struct option *option = find(parser->options, name, strlen(name));
    if (!option || strcmp(name, "config") == 0) {
        return status_fail(STATUS_INVALID, "unknown option \"%s\"", name);
    }
    status st = assign(parser, option, trim(equals + 1), FROM_FILE);
    return st ? status_note(st, "%s", name) : STATUS_OK;
}

static status read_config(struct parser *parser, const char *path)
{
    char *text = NULL;
    size_t bytes;
    int number = 0;
    status st = file_read(&text, &bytes, path, MAX_FILE);

    if (!st && strlen(text) != bytes) {
        st = status_fail(STATUS_INVALID, "%s: holds a NUL byte", path);
    }
    for (char *line = text; !st && line;) {
        char *end = strchr(line, '\n');
        if (end) {
            *end++ = '\0';
        }
        number++;
        st = read_line(parser, line);
        if (st) {
            st = status_note(st, "%s:%d", path, number);
        }
        line = end;
    }
    free(text);
    return st;
}

/* ---- the environment ---- */

/* An empty variable counts as not set. */
static const char *from_environment(const char *name)
{
    char variable[MAX_NAME + 8] = "WINNOW_";
    size_t used = strlen(variable);

    for (; *name && used + 1 < sizeof(variable); name++) {
        bool lower = *name >= 'a' && *name <= 'z';
        variable[used++] = *name == '-' ? '_' : (char)(lower ? *name - 'a' + 'A' : *name);
    }
    const char *value = getenv(variable);
    return value && *value ? value : NULL;
}

static status read_environment(struct parser *parser)
{
    for (int i = 0; i < parser->options->n; i++) {
        const struct option *option = &parser->options->table[i];
        const char *value = from_environment(option->name);
        status st = value ? assign(parser, option, value, FROM_ENVIRONMENT) : STATUS_OK;
        if (st) {
            return status_note(st, "environment variable for --%s", option->name);
        }
    }
    return STATUS_OK;
}

/* ---- the command line ---- */

struct argument {
    const struct option *option; /* NULL: positional */
    const char *value;
    bool help, version;
};

/* Takes argv[*i] apart and moves *i behind what belonged to it. */
static status next_argument(const struct options *options, int argc, char **argv, int *i,
                            struct argument *out)
{
    const char *word = argv[(*i)++];
    const char *name = word + 2;

    memset(out, 0, sizeof(*out));
    if (word[0] != '-' || !word[1]) {
        out->value = word;
        return STATUS_OK;
    }
    out->help = strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
    out->version = strcmp(word, "--version") == 0;
    if (out->help || out->version) {
        return STATUS_OK;
    }
    size_t bytes = word[1] == '-' ? strcspn(name, "=") : 0;
    out->option = bytes ? find(options, name, bytes) : NULL;
    if (!out->option) {
        return status_fail(STATUS_INVALID, "unknown option %s", word);
    }
    if (name[bytes] == '=') {
        out->value = name + bytes + 1;
    } else if (out->option->type == OPTION_FLAG) {
        out->value = "true";
    } else if (*i < argc) {
        out->value = argv[(*i)++];
    } else {
        return status_fail(STATUS_INVALID, "%s needs a value", word);
    }
    return STATUS_OK;
}

static status add_positional(struct options *options, const char *word)
{
    if (options->n_positional >= options->max_positional) {
        return status_fail(STATUS_INVALID, "unexpected argument \"%s\"", word);
    }
    options->positional[options->n_positional++] = word;
    return STATUS_OK;
}

static status read_command_line(struct parser *parser, int argc, char **argv)
{
    struct options *options = parser->options;
    struct argument argument;
    status st = STATUS_OK;
    int i = 1;

    while (!st && i < argc && strcmp(argv[i], "--") != 0) {
        st = next_argument(options, argc, argv, &i, &argument);
        if (!st && argument.option) {
            st = assign(parser, argument.option, argument.value, FROM_COMMAND_LINE);
            st = st ? status_note(st, "--%s", argument.option->name) : STATUS_OK;
        } else if (!st && argument.value) {
            st = add_positional(options, argument.value);
        }
    }
    for (i++; !st && i < argc; i++) { /* behind "--" nothing is an option */
        st = add_positional(options, argv[i]);
    }
    return st;
}

/* What has to be known before anything is assigned: --help, --version, --config. */
static status look_ahead(const struct options *options, int argc, char **argv,
                         enum options_outcome *outcome, const char **config)
{
    struct argument argument;

    *outcome = OPTIONS_RUN;
    *config = find(options, "config", 6) ? from_environment("config") : NULL;
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0;) {
        status st = next_argument(options, argc, argv, &i, &argument);
        if (st) {
            return st;
        }
        if (argument.help || argument.version) {
            *outcome = argument.help ? OPTIONS_HELP : OPTIONS_VERSION;
            return STATUS_OK;
        }
        if (argument.option && strcmp(argument.option->name, "config") == 0) {
            *config = argument.value;
        }
    }
    return STATUS_OK;
}

/* ---- --help ---- */

static void describe_default(const struct option *option, char *out, size_t out_size)
{
    const char *text;

    out[0] = '\0';
    switch (option->type) {
    case OPTION_STRING:
        text = *(const char *const *)option->value;
        if (text && *text) {
            snprintf(out, out_size, " (%s)", text);
        }
        break;
    case OPTION_INT:
    case OPTION_BYTES:
        if (!(*(const int64_t *)option->value >= option->min &&
              *(const int64_t *)option->value <= option->max)) {
            snprintf(out, out_size, " (%.15g..%.15g)", option->min, option->max);
            break;
        }
        snprintf(out, out_size, " (%lld; %.15g..%.15g)", (long long)*(const int64_t *)option->value,
                 option->min, option->max);
        break;
    case OPTION_DOUBLE:
        if (!(*(const double *)option->value >= option->min &&
              *(const double *)option->value <= option->max)) {
            snprintf(out, out_size, " (%g..%g)", option->min, option->max);
            break;
        }
        snprintf(out, out_size, " (%g; %g..%g)", *(const double *)option->value, option->min,
                 option->max);
        break;
    case OPTION_FLAG:
        snprintf(out, out_size, " (%s)", *(const bool *)option->value ? "true" : "false");
        break;
    case OPTION_LIST:
        snprintf(out, out_size, " (may be repeated)");
        break;
    }
}

static void print_option(const char *name, const char *argument, const char *help,
                         const char *suffix)
{
    char head[128];

    int n = snprintf(head, sizeof(head), "  --%s%s%s", name, argument ? " " : "",
                     argument ? argument : "");
    fputs(head, stdout);
    if (n >= HELP_COLUMN) {
        fputs("\n", stdout);
        n = 0;
    }
    for (; n < HELP_COLUMN; n++) {
        fputs(" ", stdout);
    }
    fputs(help, stdout);
    fputs(suffix, stdout);
    fputs("\n", stdout);
}

static void print_help(const struct options *options)
{
    char suffix[256];
    const char *head[] = {"usage: ",
                          options->program,
                          " [options]",
                          options->positional ? " ..." : "",
                          "\n",
                          options->synopsis ? options->synopsis : "",
                          "\n\noptions:\n"};

    for (size_t i = 0; i < sizeof(head) / sizeof(head[0]); i++) {
        fputs(head[i], stdout);
    }
    for (int i = 0; i < options->n; i++) {
        const struct option *option = &options->table[i];
        describe_default(option, suffix, sizeof(suffix));
        print_option(option->name, option->argument, option->help, suffix);
    }
    print_option("help", NULL, "print this and exit", "");
    print_option("version", NULL, "print the version and exit", "");
    fputs("\nEvery option is also read from the environment (--kv-memory 2G is "
          "WINNOW_KV_MEMORY=2G)",
          stdout);
    fputs(find(options, "config", 6) ? "\nand from the file of --config (kv-memory = 2G); the "
                                       "command line wins, then the\nenvironment, then the "
                                       "file.\n"
                                     : "; the command line wins.\n",
          stdout);
    if (options->epilog) {
        fputs("\n", stdout);
        fputs(options->epilog, stdout);
        fputs("\n", stdout);
    }
}

status options_parse(struct options *options, int argc, char **argv, enum options_outcome *outcome)
{
    struct parser parser = {.options = options};
    const char *config;

    if (options->n > MAX_OPTIONS) {
        return status_fail(STATUS_INTERNAL, "a table of more than %d options", MAX_OPTIONS);
    }
    options->n_positional = 0;
    status st = look_ahead(options, argc, argv, outcome, &config);
    if (!st && *outcome == OPTIONS_HELP) {
        print_help(options);
        return STATUS_OK;
    }
    if (!st && *outcome == OPTIONS_VERSION) {
        fputs(options->program, stdout);
        fputs(" " WINNOW_VERSION "\n", stdout);
        return STATUS_OK;
    }
    if (!st && config && *config) {
        st = read_config(&parser, config);
    }
    if (!st) {
        st = read_environment(&parser);
    }
    if (!st) {
        st = read_command_line(&parser, argc, argv);
    }
    return st;
}
