#include "coordinator/jobs.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>

struct jobs {
    pthread_mutex_t lock; /* guards what follows, but for the threads */
    pthread_cond_t more;
    struct job *first, *last;
    int n_waiting;
    size_t bytes;
    bool stopping;
    int n_threads;
    pthread_t threads[JOBS_MAX_THREADS];
};

static struct job *take(struct jobs *jobs)
{
    pthread_mutex_lock(&jobs->lock);
    while (!jobs->first && !jobs->stopping) {
        pthread_cond_wait(&jobs->more, &jobs->lock);
    }
    struct job *job = jobs->first;
    if (job) {
        jobs->first = job->next;
        jobs->last = jobs->first ? jobs->last : NULL;
        jobs->n_waiting--;
        jobs->bytes -= job->bytes;
    }
    pthread_mutex_unlock(&jobs->lock);
    return job;
}

static void *work(void *context)
{
    struct job *job;

    while ((job = take(context))) {
        job->run(job);
    }
    return NULL;
}

status jobs_open(struct jobs **out, int n_threads)
{
    struct jobs *jobs = calloc(1, sizeof(*jobs));

    assert(n_threads >= 1 && n_threads <= JOBS_MAX_THREADS);
    if (!jobs) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a queue of jobs");
    }
    pthread_mutex_init(&jobs->lock, NULL);
    pthread_cond_init(&jobs->more, NULL);
    for (int i = 0; i < n_threads; i++) {
        if (pthread_create(&jobs->threads[i], NULL, work, jobs)) {
            jobs_close(jobs);
            return status_fail(STATUS_EXHAUSTED, "no thread for jobs");
        }
        jobs->n_threads++;
    }
    *out = jobs;
    return STATUS_OK;
}

bool jobs_put(struct jobs *jobs, struct job *job)
{
    pthread_mutex_lock(&jobs->lock);
    bool room = !jobs->stopping && jobs->n_waiting < JOBS_MAX_WAITING &&
                job->bytes <= JOBS_MAX_BYTES - jobs->bytes;
    if (room) {
        job->next = NULL;
        if (jobs->last) {
            jobs->last->next = job;
        } else {
            jobs->first = job;
        }
        jobs->last = job;
        jobs->n_waiting++;
        jobs->bytes += job->bytes;
        pthread_cond_signal(&jobs->more);
    }
    pthread_mutex_unlock(&jobs->lock);
    return room;
}

void jobs_stop(struct jobs *jobs)
{
    pthread_mutex_lock(&jobs->lock);
    jobs->stopping = true;
    pthread_cond_broadcast(&jobs->more);
    pthread_mutex_unlock(&jobs->lock);
    for (int i = 0; i < jobs->n_threads; i++) {
        pthread_join(jobs->threads[i], NULL);
    }
    jobs->n_threads = 0;
}

void jobs_close(struct jobs *jobs)
{
    if (!jobs) {
        return;
    }
    jobs_stop(jobs);
    pthread_cond_destroy(&jobs->more);
    pthread_mutex_destroy(&jobs->lock);
    free(jobs);
}
