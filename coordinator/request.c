#include "coordinator/request.h"

#include <stdlib.h>

void request_free(struct request *request)
{
    if (!request) {
        return;
    }
    free(request->prompt);
    free(request->head_scores);
    free(request->special_ids);
    free(request->punct_ids);
    free(request);
}
