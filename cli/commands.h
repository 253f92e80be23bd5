/*
 * commands.h - the subcommands of winnow, each with its own options.
 *
 * What was asked for goes to stdout; progress, summaries and errors go to stderr.
 */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

enum exit_status {
    EXIT_OK = 0,
    EXIT_ERROR = 1,       /* told in one sentence on stderr */
    EXIT_USAGE = 2,       /* likewise: wrong usage */
    EXIT_INTERRUPT = 130, /* by Ctrl-C, as shells count it */
};

int generate_main(int argc, char **argv);
int tokenize_main(int argc, char **argv);
int status_main(int argc, char **argv);
int doctor_main(int argc, char **argv);
int bench_main(int argc, char **argv); /* a family of its own: cli/bench */

#endif
