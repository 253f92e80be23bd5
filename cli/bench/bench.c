#include "cli/bench/bench.h"

#include "cli/commands.h"
#include "cli/print.h"

#include <string.h>

static const char usage[] =
    "usage: winnow bench COMMAND [options]\n"
    "Measure a winnow server, and show what was measured.\n"
    "\n"
    "commands:\n"
    "  serve        many requests, as users send them: latency and throughput under load\n"
    "  prefill      time to the first token, by method and length\n"
    "  e2e          time of a whole answer, by method and length\n"
    "  throughput   speed of decoding, by method and length\n"
    "  compare      two results, figure by figure\n"
    "  report       results as one page with plots\n"
    "\n"
    "winnow bench COMMAND --help lists a command's options; docs/benchmarking.md is the guide.\n";

int bench_main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {
        {"serve", serve_main},     {"prefill", sweep_prefill_main},
        {"e2e", sweep_e2e_main},   {"throughput", sweep_throughput_main},
        {"compare", compare_main}, {"report", report_main},
    };
    const char *name = argc > 1 ? argv[1] : "";

    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_out("%s", usage);
        return print_finish();
    }
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(name, commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    if (name[0]) {
        print_note("winnow bench: there is no command \"%s\"; winnow bench --help lists them\n",
                   name);
    } else {
        print_note("%s", usage);
    }
    return EXIT_USAGE;
}
