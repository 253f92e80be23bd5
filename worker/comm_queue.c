#include "worker/comm_queue.h"

#include "common/clock.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

struct sum {
    float *x;
    size_t n;
};

struct comm_queue {
    comm_queue_sum *sum;
    void *context;
    pthread_t thread;
    bool runs;
    uint64_t added; /* written by the engine thread, under the lock */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* Guarded by the lock. */
    struct sum sums[COMM_QUEUE_LENGTH]; /* number i is at i % COMM_QUEUE_LENGTH */
    uint64_t done;
    bool closing;
    double ms;
    struct failure failure; /* code STATUS_OK: none */
};

/* The next sum, or false when the queue closes. */
static bool next_sum(struct comm_queue *queue, struct sum *sum, bool *failed)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->done == queue->added && !queue->closing) {
        pthread_cond_wait(&queue->changed, &queue->lock);
    }
    bool more = !queue->closing;
    *sum = queue->sums[(queue->done + 1) % COMM_QUEUE_LENGTH];
    *failed = queue->failure.code != STATUS_OK;
    pthread_mutex_unlock(&queue->lock);
    return more;
}

static void *carry_out(void *argument)
{
    struct comm_queue *queue = argument;
    struct sum sum;
    bool failed;

    while (next_sum(queue, &sum, &failed)) {
        double begin = clock_ms();
        status st = failed ? STATUS_OK : queue->sum(queue->context, sum.x, sum.n);
        pthread_mutex_lock(&queue->lock);
        if (st) {
            status_save(&queue->failure, st);
        }
        queue->ms += clock_ms() - begin;
        queue->done++;
        pthread_cond_broadcast(&queue->changed);
        pthread_mutex_unlock(&queue->lock);
    }
    return NULL;
}

status comm_queue_create(struct comm_queue **out, comm_queue_sum *sum, void *context)
{
    struct comm_queue *queue = calloc(1, sizeof(*queue));

    if (!queue) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the collectives");
    }
    queue->sum = sum;
    queue->context = context;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->changed, NULL);
    if (pthread_create(&queue->thread, NULL, carry_out, queue) != 0) {
        comm_queue_destroy(queue);
        return status_fail(STATUS_EXHAUSTED, "no thread for the collectives");
    }
    queue->runs = true;
    *out = queue;
    return STATUS_OK;
}

void comm_queue_destroy(struct comm_queue *queue)
{
    if (!queue) {
        return;
    }
    if (queue->runs) {
        pthread_mutex_lock(&queue->lock);
        queue->closing = true;
        pthread_cond_broadcast(&queue->changed);
        pthread_mutex_unlock(&queue->lock);
        pthread_join(queue->thread, NULL);
    }
    pthread_cond_destroy(&queue->changed);
    pthread_mutex_destroy(&queue->lock);
    free(queue);
}

uint64_t comm_queue_add(struct comm_queue *queue, float *x, size_t n)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->added - queue->done == COMM_QUEUE_LENGTH) {
        pthread_cond_wait(&queue->changed, &queue->lock);
    }
    uint64_t number = ++queue->added;
    struct sum *sum = &queue->sums[number % COMM_QUEUE_LENGTH];
    sum->x = x;
    sum->n = n;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
    return number;
}

status comm_queue_wait(struct comm_queue *queue, uint64_t number)
{
    struct failure failure;

    pthread_mutex_lock(&queue->lock);
    while (queue->done < number) {
        pthread_cond_wait(&queue->changed, &queue->lock);
    }
    failure = queue->failure;
    pthread_mutex_unlock(&queue->lock);
    return failure.code ? status_fail(failure.code, "%s", failure.text) : STATUS_OK;
}

uint64_t comm_queue_last(const struct comm_queue *queue)
{
    return queue->added;
}

double comm_queue_take_ms(struct comm_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    double ms = queue->ms;
    queue->ms = 0;
    pthread_mutex_unlock(&queue->lock);
    return ms;
}
