#include "cli/commands.h"
#include "cli/print.h"

#include <string.h>

static const char usage[] =
    "usage: winnow COMMAND [options]\n"
    "Ask very long documents, through a winnow server.\n"
    "\n"
    "commands:\n"
    "  generate   send a document and a question, stream the answer\n"
    "  tokenize   turn text into token ids, or ids into text\n"
    "  bench      measure a server, compare and plot results\n"
    "  status     show the server, its workers and its model\n"
    "  doctor     show what this machine has for workers, and what is missing for GPUs\n"
    "\n"
    "winnow COMMAND --help lists a command's options, winnow --version prints the version.\n"
    "Exit status: 0 success, 1 an error told on stderr, 2 wrong usage, 130 interrupted.\n";

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {
        {"generate", generate_main}, {"tokenize", tokenize_main}, {"status", status_main},
        {"doctor", doctor_main},     {"bench", bench_main},
    };
    const char *name = argc > 1 ? argv[1] : "";

    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_out("%s", usage);
        return print_finish();
    }
    if (strcmp(name, "--version") == 0) {
        print_out("winnow " WINNOW_VERSION "\n");
        return print_finish();
    }
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(name, commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    if (name[0]) {
        print_note("winnow: there is no command \"%s\"; winnow --help lists them\n", name);
    } else {
        print_note("%s", usage);
    }
    return EXIT_USAGE;
}
