/* A stand-in for the driver's library, libcuda.so.1, that checks who calls it.
 *
 * Every stream is a queue with a thread; the copies of all streams share one engine of a given speed,
 * one piece of a copy at a time. A copy reads its source piece by piece while it runs, so the order of
 * things is that of a real device. Device memory is host memory behind an address of its own range.
 *
 * What is checked, each failure being one line of the report:
 *   - a call that needs a context is made on a thread where it is current;
 *   - the source of a copy lies in pinned memory or in a live registration, and stays there, mapped
 *     and unchanged (by a checksum), until the copy is done;
 *   - the destination lies in one live allocation, until the copy is done;
 *   - handles are live when used, memory is not freed while a copy uses it;
 *   - at the end of the process nothing is left: contexts, streams, events, memory, registrations.
 * A process that ends without a violation writes "ok"; one that is killed writes nothing.
 *
 * Scripted by the environment, read when the library is loaded:
 *   FOREBAY_CUDA_REPORT          path of the report, appended to
 *   FOREBAY_CUDA_GBPS            speed of the engine, 1e9 bytes a second (default 20)
 *   FOREBAY_CUDA_DEVICES         how many devices there are (default 1; 0: cuInit says so)
 *   FOREBAY_CUDA_VERSION         what cuDriverGetVersion tells (default 12020)
 *   FOREBAY_CUDA_MEMORY          bytes of device memory (default 1 TiB)
 *   FOREBAY_CUDA_READ_ONLY       0: registering read-only memory is not supported
 *   FOREBAY_CUDA_PLAIN           1: memory is registered without a look at whether it can be written
 *   FOREBAY_CUDA_REFUSE          N: registrations after the first N are refused
 *   FOREBAY_CUDA_FAIL_COPY       N: the Nth copy fails when it runs
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_READY = 600, LAUNCH_FAILED = 719,
    ALREADY_REGISTERED = 712, NOT_REGISTERED = 713, NOT_SUPPORTED = 801,
};
enum { ATTRIBUTE_MAX_PITCH = 11, ATTRIBUTE_READ_ONLY = 113, FLAG_READ_ONLY = 8 };
enum { PIECE_BYTES = 256 << 10 };

typedef unsigned long long Address;

/* A range of memory: allocated on the device, pinned on the host, or registered. */
typedef struct Range {
    struct Range *next;
    uintptr_t start;
    size_t bytes;
    char *store;
    int users;
} Range;

typedef struct Event {
    struct Event *next;
    int recorded, reached, disable_timing;
    double at;
} Event;

typedef struct Work {
    struct Work *next;
    Event *event;
    const char *source;
    size_t source_pitch;
    char *target;
    size_t target_pitch, row_bytes, rows;
    uint64_t sum;
    Range *from, *to;
    long number;
} Work;

typedef struct Stream {
    struct Stream *next;
    pthread_t thread;
    pthread_cond_t changed;
    Work *first, *last;
    int busy, ending, failed;
} Stream;

/* As in cuda.h. */
typedef struct {
    size_t source_x, source_y;
    int source_type;
    const char *source_host;
    Address source_device;
    void *source_array;
    size_t source_pitch;
    size_t target_x, target_y;
    int target_type;
    char *target_host;
    Address target_device;
    void *target_array;
    size_t target_pitch;
    size_t width, height;
} Rows;

static pthread_mutex_t state = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t engine = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t reached = PTHREAD_COND_INITIALIZER;
static Range *allocated, *pinned, *registered;
static Event *events;
static Stream *streams, *default_stream;
static int context, retained, devices, read_only, plain, violations;
static long registrations, registrations_max, copies, copy_that_fails;
static int version;
static size_t memory_left;
static double bytes_per_second, engine_free;
static uintptr_t next_address = 0x7f0000000000u;
static const char *report;
static __thread void *current;

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void tell(const char *format, ...) {
    FILE *file = report ? fopen(report, "a") : stderr;
    va_list values;
    if (!file) return;
    va_start(values, format);
    vfprintf(file, format, values);
    va_end(values);
    fputc('\n', file);
    if (report) fclose(file);
}

#define VIOLATION(...) (violations++, tell(__VA_ARGS__))

__attribute__((constructor)) static void begin(void) {
    const char *path = setting("FOREBAY_CUDA_REPORT", NULL);
    report = path ? strdup(path) : NULL;
    bytes_per_second = atof(setting("FOREBAY_CUDA_GBPS", "20")) * 1e9;
    devices = atoi(setting("FOREBAY_CUDA_DEVICES", "1"));
    version = atoi(setting("FOREBAY_CUDA_VERSION", "12020"));
    memory_left = strtoull(setting("FOREBAY_CUDA_MEMORY", "1099511627776"), NULL, 10);
    read_only = atoi(setting("FOREBAY_CUDA_READ_ONLY", "1"));
    plain = atoi(setting("FOREBAY_CUDA_PLAIN", "0"));
    registrations_max = atol(setting("FOREBAY_CUDA_REFUSE", "1000000000"));
    copy_that_fails = atol(setting("FOREBAY_CUDA_FAIL_COPY", "0"));
}

#define COUNT(type, list) \
    ({ int count = 0; for (type *item = list; item; item = item->next) count++; count; })

__attribute__((destructor)) static void end(void) {
    pthread_mutex_lock(&state);
    int left[] = { retained, COUNT(Stream, streams), COUNT(Event, events),
                   COUNT(Range, allocated), COUNT(Range, pinned), COUNT(Range, registered) };
    const char *what[] = { "context", "stream", "event", "allocation", "pinned buffer",
                           "registration" };
    for (int i = 0; i < 6; i++)
        if (left[i]) VIOLATION("at the end: %d x %s", left[i], what[i]);
    if (!violations) tell("ok");
    pthread_mutex_unlock(&state);
}

static int has_context(const char *call) {
    if (current == &context && retained) return 1;
    pthread_mutex_lock(&state);
    VIOLATION("%s: no context is current on this thread", call);
    pthread_mutex_unlock(&state);
    return 0;
}

#define NEEDS_CONTEXT() do { if (!has_context(__func__)) return INVALID_CONTEXT; } while (0)

/* The range that holds all of some bytes. */
static Range *holding(Range *list, uintptr_t start, size_t bytes) {
    for (; list; list = list->next)
        if (start >= list->start && bytes <= list->bytes
            && start - list->start <= list->bytes - bytes)
            return list;
    return NULL;
}

static Range *added(Range **list, uintptr_t start, size_t bytes, char *store) {
    Range *range = calloc(1, sizeof *range);
    *range = (Range){ .next = *list, .start = start, .bytes = bytes, .store = store };
    return *list = range;
}

/* Takes a range out of its list, if nothing uses it any more. */
static int removed(Range **list, uintptr_t start, const char *call, char **store) {
    for (; *list; list = &(*list)->next) {
        Range *range = *list;
        if (range->start != start) continue;
        if (range->users) VIOLATION("%s: %d copies still use it", call, range->users);
        if (store) *store = range->users ? NULL : range->store;
        *list = range->next;
        if (!range->users) free(range);
        return 1;
    }
    VIOLATION("%s: it is not live", call);
    return 0;
}

static uint64_t summed(uint64_t sum, const char *bytes, size_t count) {
    for (; count >= 8; bytes += 8, count -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    while (count--) sum = (sum ^ (unsigned char)*bytes++) * 0x100000001b3u;
    return sum;
}

static uint64_t sum_of(const Work *work) {
    uint64_t sum = 1;
    for (size_t row = 0; row < work->rows; row++)
        sum = summed(sum, work->source + row * work->source_pitch, work->row_bytes);
    return sum;
}

/* Keeps the engine for as long as some bytes take. */
static void paced(size_t bytes) {
    double from = now();
    if (engine_free > from) from = engine_free;
    engine_free = from + (double)bytes / bytes_per_second;
    double left = engine_free - now();
    if (left > 50e-6) usleep((useconds_t)(left * 1e6));
}

static int still_there(const Work *work) {
    pthread_mutex_lock(&state);
    int there = (holding(registered, (uintptr_t)work->source, 1)
                 || holding(pinned, (uintptr_t)work->source, 1));
    if (!there) VIOLATION("copy %ld: its source was unregistered before its end", work->number);
    pthread_mutex_unlock(&state);
    return there;
}

static int copied(Work *work) {
    uint64_t sum = 1;
    for (size_t row = 0; row < work->rows; row++) {
        for (size_t at = 0; at < work->row_bytes; at += PIECE_BYTES) {
            size_t bytes = work->row_bytes - at < PIECE_BYTES ? work->row_bytes - at : PIECE_BYTES;
            pthread_mutex_lock(&engine);
            paced(bytes);
            pthread_mutex_unlock(&engine);
            if (at == 0 && row % 64 == 0 && !still_there(work)) return 0;
            memcpy(work->target + row * work->target_pitch + at,
                   work->source + row * work->source_pitch + at, bytes);
        }
        sum = summed(sum, work->target + row * work->target_pitch, work->row_bytes);
    }
    if (sum != work->sum || sum_of(work) != work->sum) {
        pthread_mutex_lock(&state);
        VIOLATION("copy %ld: its source was changed before its end", work->number);
        pthread_mutex_unlock(&state);
    }
    return work->number != copy_that_fails;
}

static void *streaming(void *argument) {
    Stream *stream = argument;
    pthread_mutex_lock(&state);
    for (;;) {
        while (!stream->first && !stream->ending) pthread_cond_wait(&stream->changed, &state);
        Work *work = stream->first;
        if (!work) break;
        stream->first = work->next;
        if (!stream->first) stream->last = NULL;
        if (work->event) {
            work->event->reached = stream->failed ? -1 : 1;
            work->event->at = now();
        } else {
            pthread_mutex_unlock(&state);
            int good = stream->failed || copied(work);
            pthread_mutex_lock(&state);
            if (!good) stream->failed = 1;
            if (work->from) work->from->users--;
            if (work->to) work->to->users--;
        }
        free(work);
        stream->busy--;
        pthread_cond_broadcast(&reached);
    }
    pthread_mutex_unlock(&state);
    return NULL;
}

static Stream *made_stream(void) {
    Stream *stream = calloc(1, sizeof *stream);
    pthread_cond_init(&stream->changed, NULL);
    if (!pthread_create(&stream->thread, NULL, streaming, stream)) return stream;
    free(stream);
    return NULL;
}

/* The stream with this handle, the default one for none; the caller holds the lock. */
static Stream *live_stream(Stream *stream, const char *call) {
    if (!stream) return default_stream ? default_stream : (default_stream = made_stream());
    for (Stream *item = streams; item; item = item->next)
        if (item == stream) return item;
    VIOLATION("%s: the stream is not live", call);
    return NULL;
}

static Event *live_event(Event *event, const char *call) {
    for (Event *item = events; item; item = item->next)
        if (item == event) return item;
    VIOLATION("%s: the event is not live", call);
    return NULL;
}

static void queue(Stream *stream, Work work) {
    Work *item = malloc(sizeof *item);
    *item = work;
    item->next = NULL;
    if (stream->last) stream->last->next = item; else stream->first = item;
    stream->last = item;
    stream->busy++;
    pthread_cond_signal(&stream->changed);
}

static int copy(const char *call, Stream *stream, Address target, Work work) {
    size_t span = work.row_bytes + (work.rows - 1) * work.source_pitch;
    size_t target_span = work.row_bytes + (work.rows - 1) * work.target_pitch;
    work.sum = 0;
    pthread_mutex_lock(&state);
    int result = INVALID_VALUE;
    work.number = ++copies;
    uintptr_t source = (uintptr_t)work.source;
    work.from = holding(registered, source, span);
    if (!work.from) work.from = holding(pinned, source, span);
    work.to = holding(allocated, (uintptr_t)target, target_span);
    if (!work.from) VIOLATION("%s: copy %ld from memory that is not pinned", call, work.number);
    if (!work.to) VIOLATION("%s: copy %ld to memory that is not allocated", call, work.number);
    if (work.from && work.to && (stream = live_stream(stream, call))) {
        work.target = work.to->store + (target - work.to->start);
        work.sum = sum_of(&work);
        work.from->users++;
        work.to->users++;
        queue(stream, work);
        result = SUCCESS;
    }
    pthread_mutex_unlock(&state);
    return result;
}

int cuInit(unsigned flags) {
    (void)flags;
    return devices ? SUCCESS : NO_DEVICE;
}

int cuDriverGetVersion(int *told) {
    *told = version;
    return SUCCESS;
}

static const struct { int code; const char *name, *words; } errors[] = {
    { INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument" },
    { OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory" },
    { NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected" },
    { INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal" },
    { INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context" },
    { INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle" },
    { LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure" },
    { NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported" },
};

static int named(int code, const char **text, int words) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) {
            *text = words ? errors[i].words : errors[i].name;
            return SUCCESS;
        }
    *text = NULL;
    return INVALID_VALUE;
}

int cuGetErrorName(int code, const char **text) { return named(code, text, 0); }

int cuGetErrorString(int code, const char **text) { return named(code, text, 1); }

int cuDeviceGetCount(int *count) {
    *count = devices;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetName(char *text, int bytes, int device) {
    snprintf(text, (size_t)bytes, "Stand-in %d", device);
    return SUCCESS;
}

int cuDeviceGetPCIBusId(char *text, int bytes, int device) {
    snprintf(text, (size_t)bytes, "0000:%02X:00.0", (unsigned)device + 0x17u);
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == ATTRIBUTE_READ_ONLY ? read_only
        : attribute == ATTRIBUTE_MAX_PITCH ? 0x7fffffff : 0;
    return SUCCESS;
}

/* All devices share the one context: none of our tests opens two. */
int cuDevicePrimaryCtxRetain(void **told, int device) {
    (void)device;
    pthread_mutex_lock(&state);
    retained++;
    pthread_mutex_unlock(&state);
    *told = &context;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    pthread_mutex_lock(&state);
    if (--retained < 0) VIOLATION("%s: the context is not retained", __func__);
    pthread_mutex_unlock(&state);
    return SUCCESS;
}

int cuCtxGetCurrent(void **told) {
    *told = current;
    return SUCCESS;
}

int cuCtxSetCurrent(void *wanted) {
    current = wanted;
    return SUCCESS;
}

int cuMemHostRegister_v2(void *start, size_t bytes, unsigned flags) {
    NEEDS_CONTEXT();
    if ((uintptr_t)start % 4096 || !bytes) return INVALID_VALUE;
    if ((flags & FLAG_READ_ONLY) && !read_only) return NOT_SUPPORTED;
    /* As real drivers do: a mapping that cannot be written is not taken for one that can. */
    if (!(flags & FLAG_READ_ONLY) && !plain) return INVALID_VALUE;
    pthread_mutex_lock(&state);
    int result = SUCCESS;
    if (registrations >= registrations_max) result = OUT_OF_MEMORY;
    else if (holding(registered, (uintptr_t)start, 1)) result = ALREADY_REGISTERED;
    else {
        registrations++;
        added(&registered, (uintptr_t)start, bytes, NULL);
    }
    pthread_mutex_unlock(&state);
    return result;
}

int cuMemHostUnregister(void *start) {
    NEEDS_CONTEXT();
    pthread_mutex_lock(&state);
    int found = removed(&registered, (uintptr_t)start, __func__, NULL);
    pthread_mutex_unlock(&state);
    return found ? SUCCESS : NOT_REGISTERED;
}

int cuMemHostAlloc(void **told, size_t bytes, unsigned flags) {
    NEEDS_CONTEXT();
    (void)flags;
    if (posix_memalign(told, 4096, bytes)) return OUT_OF_MEMORY;
    pthread_mutex_lock(&state);
    added(&pinned, (uintptr_t)*told, bytes, *told);
    pthread_mutex_unlock(&state);
    return SUCCESS;
}

int cuMemFreeHost(void *start) {
    NEEDS_CONTEXT();
    char *store = NULL;
    pthread_mutex_lock(&state);
    int found = removed(&pinned, (uintptr_t)start, __func__, &store);
    pthread_mutex_unlock(&state);
    free(store);
    return found ? SUCCESS : INVALID_VALUE;
}

int cuMemAlloc_v2(Address *told, size_t bytes) {
    NEEDS_CONTEXT();
    if (!bytes) return INVALID_VALUE;
    pthread_mutex_lock(&state);
    int result = OUT_OF_MEMORY;
    char *store = bytes <= memory_left ? malloc(bytes) : NULL;
    if (store) {
        memory_left -= bytes;
        *told = added(&allocated, next_address, bytes, store)->start;
        next_address += (bytes + 4096 + 511) & ~(uintptr_t)511;
        result = SUCCESS;
    }
    pthread_mutex_unlock(&state);
    return result;
}

int cuMemFree_v2(Address start) {
    NEEDS_CONTEXT();
    char *store = NULL;
    pthread_mutex_lock(&state);
    Range *range = holding(allocated, (uintptr_t)start, 1);
    if (range) memory_left += range->bytes;
    int found = removed(&allocated, (uintptr_t)start, __func__, &store);
    pthread_mutex_unlock(&state);
    free(store);
    return found ? SUCCESS : INVALID_VALUE;
}

int cuMemcpyHtoDAsync_v2(Address target, const void *source, size_t bytes, Stream *stream) {
    NEEDS_CONTEXT();
    Work work = { .source = source, .row_bytes = bytes, .rows = 1 };
    return copy(__func__, stream, target, work);
}

int cuMemcpy2DAsync_v2(const Rows *rows, Stream *stream) {
    NEEDS_CONTEXT();
    if (rows->source_type != 1 || rows->target_type != 2 || !rows->height
        || rows->source_pitch < rows->width || rows->target_pitch < rows->width)
        return INVALID_VALUE;
    Work work = {
        .source = rows->source_host + rows->source_y * rows->source_pitch + rows->source_x,
        .source_pitch = rows->source_pitch, .target_pitch = rows->target_pitch,
        .row_bytes = rows->width, .rows = rows->height,
    };
    Address target = rows->target_device + rows->target_y * rows->target_pitch + rows->target_x;
    return copy(__func__, stream, target, work);
}

/* For tests, which look at what was copied. */
int cuMemcpyDtoH_v2(void *target, Address source, size_t bytes) {
    NEEDS_CONTEXT();
    pthread_mutex_lock(&state);
    Range *range = holding(allocated, (uintptr_t)source, bytes);
    if (range) memcpy(target, range->store + (source - range->start), bytes);
    pthread_mutex_unlock(&state);
    return range ? SUCCESS : INVALID_VALUE;
}

int cuStreamCreate(Stream **told, unsigned flags) {
    NEEDS_CONTEXT();
    (void)flags;
    Stream *stream = made_stream();
    if (!stream) return OUT_OF_MEMORY;
    pthread_mutex_lock(&state);
    stream->next = streams;
    streams = stream;
    pthread_mutex_unlock(&state);
    *told = stream;
    return SUCCESS;
}

int cuStreamSynchronize(Stream *stream) {
    NEEDS_CONTEXT();
    pthread_mutex_lock(&state);
    int result = INVALID_HANDLE;
    if ((stream = live_stream(stream, __func__))) {
        while (stream->busy) pthread_cond_wait(&reached, &state);
        result = stream->failed ? LAUNCH_FAILED : SUCCESS;
    }
    pthread_mutex_unlock(&state);
    return result;
}

int cuStreamDestroy_v2(Stream *stream) {
    NEEDS_CONTEXT();
    if (!stream) return INVALID_HANDLE;
    pthread_mutex_lock(&state);
    if (!live_stream(stream, __func__)) {
        pthread_mutex_unlock(&state);
        return INVALID_HANDLE;
    }
    Stream **place = &streams;
    while (*place != stream) place = &(*place)->next;
    *place = stream->next;
    stream->ending = 1;
    pthread_cond_signal(&stream->changed);
    pthread_mutex_unlock(&state);
    pthread_join(stream->thread, NULL);
    free(stream);
    return SUCCESS;
}

int cuEventCreate(Event **told, unsigned flags) {
    NEEDS_CONTEXT();
    Event *event = calloc(1, sizeof *event);
    event->disable_timing = (flags & 2) != 0;
    pthread_mutex_lock(&state);
    event->next = events;
    events = event;
    pthread_mutex_unlock(&state);
    *told = event;
    return SUCCESS;
}

int cuEventDestroy_v2(Event *event) {
    NEEDS_CONTEXT();
    pthread_mutex_lock(&state);
    int result = INVALID_HANDLE;
    if (live_event(event, __func__)) {
        if (event->recorded && !event->reached)
            VIOLATION("%s: its stream has not reached it", __func__);
        Event **place = &events;
        while (*place != event) place = &(*place)->next;
        *place = event->next;
        if (!event->recorded || event->reached) free(event);
        result = SUCCESS;
    }
    pthread_mutex_unlock(&state);
    return result;
}

int cuEventRecord(Event *event, Stream *stream) {
    NEEDS_CONTEXT();
    pthread_mutex_lock(&state);
    int result = INVALID_HANDLE;
    if (live_event(event, __func__) && (stream = live_stream(stream, __func__))) {
        if (event->recorded && !event->reached)
            VIOLATION("%s: recorded again before it was reached", __func__);
        event->recorded = 1;
        event->reached = 0;
        queue(stream, (Work){ .event = event });
        result = SUCCESS;
    }
    pthread_mutex_unlock(&state);
    return result;
}

static int standing(const Event *event) {
    if (!event->recorded || event->reached > 0) return SUCCESS;
    return event->reached ? LAUNCH_FAILED : NOT_READY;
}

int cuEventQuery(Event *event) {
    NEEDS_CONTEXT();
    pthread_mutex_lock(&state);
    int result = live_event(event, __func__) ? standing(event) : INVALID_HANDLE;
    pthread_mutex_unlock(&state);
    return result;
}

int cuEventSynchronize(Event *event) {
    NEEDS_CONTEXT();
    pthread_mutex_lock(&state);
    int result = INVALID_HANDLE;
    if (live_event(event, __func__))
        while ((result = standing(event)) == NOT_READY) pthread_cond_wait(&reached, &state);
    pthread_mutex_unlock(&state);
    return result;
}

int cuEventElapsedTime(float *milliseconds, Event *from, Event *to) {
    NEEDS_CONTEXT();
    pthread_mutex_lock(&state);
    int result = INVALID_HANDLE;
    if (live_event(from, __func__) && live_event(to, __func__)) {
        int timed = !from->disable_timing && !to->disable_timing;
        int both = from->recorded && to->recorded;
        result = timed && both ? SUCCESS : INVALID_HANDLE;
        if (both && (standing(from) == NOT_READY || standing(to) == NOT_READY)) result = NOT_READY;
        *milliseconds = (float)((to->at - from->at) * 1e3);
    }
    pthread_mutex_unlock(&state);
    return result;
}
