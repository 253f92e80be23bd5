/* clock.h - how long things take: the monotonic clock, which no adjustment of the date moves. */
#ifndef COMMON_CLOCK_H
#define COMMON_CLOCK_H

#ifdef __cplusplus
extern "C" {
#endif

/* Milliseconds since some moment before the process began. */
double clock_ms(void);

#ifdef __cplusplus
}
#endif

#endif
