/*
 * interrupt.h - SIGINT and SIGTERM as events: a file descriptor to poll, and a question.
 *
 * The signals are blocked before any thread starts, so nothing is ever cut off in the middle.
 */
#ifndef CLI_INTERRUPT_H
#define CLI_INTERRUPT_H

#include "common/status.h"

#include <stdbool.h>

status interrupt_open(void);
void interrupt_close(void);
int interrupt_fd(void);
/* Whether a signal has come since the last question. */
bool interrupt_take(void);

#endif
