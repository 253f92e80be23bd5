/* bench.h - the commands of winnow bench. */
#ifndef CLI_BENCH_BENCH_H
#define CLI_BENCH_BENCH_H

int serve_main(int argc, char **argv);
int sweep_prefill_main(int argc, char **argv);
int sweep_e2e_main(int argc, char **argv);
int sweep_throughput_main(int argc, char **argv);
int compare_main(int argc, char **argv);
int report_main(int argc, char **argv);

#endif
