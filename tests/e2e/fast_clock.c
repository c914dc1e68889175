// A clock that goes faster while a test says so: for one process, by LD_PRELOAD, all of its clocks and all of its waits.
//
// FAST_CLOCK names a file with two 64-bit integers: how many times as fast the clock goes now (its waits are that much
// shorter), and by how many nanoseconds the time of day is ahead. libfaketime does the same but for waits on futexes, which
// are what Rust's condition variables are: their deadlines would stay on the true clock.
//
// FAST_CLOCK_SPARES, `FROM-TO` in hexadecimal, is the part of the program that keeps the true time: a library that talks to
// another process about how long things may take, which would be as much too impatient as the clock is fast.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

struct orders {
    _Atomic int64_t factor, ahead;
};

static struct orders still = {1, 0};
static struct orders *orders = &still;
static long (*true_syscall)(long, ...);
static atomic_flag busy = ATOMIC_FLAG_INIT;
// What the fast clock has gained on the true one, up to the true time `last`.
static int64_t gained, last;
static uintptr_t spared_from, spared_to;

static int64_t true_now(clockid_t clock) {
    struct timespec at;
    true_syscall(SYS_clock_gettime, clock, &at);
    return at.tv_sec * SECOND + at.tv_nsec;
}

__attribute__((constructor)) static void begin(void) {
    if (true_syscall) return;
    true_syscall = dlsym(RTLD_NEXT, "syscall");
    const char *spares = getenv("FAST_CLOCK_SPARES");
    unsigned long from, to, base;
    // The program's own mapping is the first.
    FILE *maps = spares ? fopen("/proc/self/maps", "r") : NULL;
    if (maps && sscanf(spares, "%lx-%lx", &from, &to) == 2 && fscanf(maps, "%lx-", &base) == 1) {
        spared_from = base + from;
        spared_to = base + to;
    }
    if (maps) fclose(maps);
    const char *path = getenv("FAST_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *at = mmap(NULL, sizeof(struct orders), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (at != MAP_FAILED) orders = at;
    last = true_now(CLOCK_MONOTONIC);
}

static int64_t factor(void) {
    int64_t now = orders->factor;
    return now < 1 ? 1 : now;
}

#define SPARED is_spared((uintptr_t)__builtin_return_address(0))

static int is_spared(uintptr_t caller) {
    return spared_from <= caller && caller < spared_to;
}

// By how much the fast clock is ahead of the true one now.
static int64_t gain(void) {
    begin();
    while (atomic_flag_test_and_set_explicit(&busy, memory_order_acquire)) {
    }
    int64_t now = true_now(CLOCK_MONOTONIC);
    if (last < now) {
        gained += (now - last) * (factor() - 1);
        last = now;
    }
    int64_t found = gained;
    atomic_flag_clear_explicit(&busy, memory_order_release);
    return found;
}

static int is_wall(clockid_t clock) {
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
}

static int is_faked(clockid_t clock) {
    return is_wall(clock) || clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE || clock == CLOCK_MONOTONIC_RAW ||
           clock == CLOCK_BOOTTIME;
}

static int64_t now_by(clockid_t clock) {
    int64_t ahead = gain();
    return true_now(clock) + ahead + (is_wall(clock) ? orders->ahead : 0);
}

static struct timespec spec(int64_t nanoseconds) {
    if (nanoseconds < 0) nanoseconds = 0;
    return (struct timespec){nanoseconds / SECOND, nanoseconds % SECOND};
}

static int64_t span(const struct timespec *time) {
    return time->tv_sec > INT64_MAX / SECOND - 1 ? INT64_MAX : time->tv_sec * SECOND + time->tv_nsec;
}

// A deadline of the fast clock as one of the true clock.
static struct timespec true_deadline(clockid_t clock, const struct timespec *deadline) {
    int64_t now = now_by(clock), wanted = span(deadline);
    int64_t left = wanted <= now ? 0 : (wanted - now) / factor() + 1;
    return spec(true_now(clock) + left);
}

// Times of day are large, times since the start of the machine are not.
static clockid_t clock_of(const struct timespec *deadline) {
    return deadline->tv_sec > 1000000000 ? CLOCK_REALTIME : CLOCK_MONOTONIC;
}

static int milliseconds(int timeout) {
    return timeout <= 0 ? timeout : (int)((timeout + factor() - 1) / factor());
}

static void *real(const char *name, const char *version) {
    void *found = version ? dlvsym(RTLD_NEXT, name, version) : NULL;
    return found ? found : dlsym(RTLD_NEXT, name);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    begin();
    if (!is_faked(clock) || SPARED) return (int)true_syscall(SYS_clock_gettime, clock, at);
    *at = spec(now_by(clock));
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    int64_t now = SPARED ? true_now(CLOCK_REALTIME) : now_by(CLOCK_REALTIME);
    *at = (struct timeval){now / SECOND, now % SECOND / 1000};
    return 0;
}

time_t time(time_t *at) {
    time_t now = (SPARED ? true_now(CLOCK_REALTIME) : now_by(CLOCK_REALTIME)) / SECOND;
    if (at) *at = now;
    return now;
}

int timespec_get(struct timespec *at, int base) {
    *at = spec(SPARED ? true_now(CLOCK_REALTIME) : now_by(CLOCK_REALTIME));
    return base;
}

static int sleep_by(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left, int spared) {
    begin();
    if (spared) return true_syscall(SYS_clock_nanosleep, clock, flags, wanted, left) ? errno : 0;
    struct timespec shorter =
        flags & TIMER_ABSTIME ? true_deadline(clock, wanted) : spec(span(wanted) / factor() + 1);
    long done = true_syscall(SYS_clock_nanosleep, clock, flags, &shorter, left);
    if (done == 0) return 0;
    if (left) *left = spec(span(left) * factor());
    return errno;
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left) {
    return sleep_by(clock, flags, wanted, left, SPARED);
}

int nanosleep(const struct timespec *wanted, struct timespec *left) {
    int fault = sleep_by(CLOCK_MONOTONIC, 0, wanted, left, SPARED);
    if (fault) errno = fault;
    return fault ? -1 : 0;
}

int epoll_wait(int of, struct epoll_event *events, int most, int timeout) {
    static int (*next)(int, struct epoll_event *, int, int);
    if (!next) next = real("epoll_wait", NULL);
    return next(of, events, most, milliseconds(timeout));
}

int poll(struct pollfd *of, nfds_t count, int timeout) {
    static int (*next)(struct pollfd *, nfds_t, int);
    if (!next) next = real("poll", NULL);
    return next(of, count, SPARED ? timeout : milliseconds(timeout));
}

int pthread_cond_timedwait(pthread_cond_t *restrict of, pthread_mutex_t *restrict lock, const struct timespec *restrict until) {
    static int (*next)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!next) next = real("pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec deadline = SPARED ? *until : true_deadline(clock_of(until), until);
    return next(of, lock, &deadline);
}

int cnd_timedwait(cnd_t *restrict of, mtx_t *restrict lock, const struct timespec *restrict until) {
    static int (*next)(cnd_t *, mtx_t *, const struct timespec *);
    if (!next) next = real("cnd_timedwait", NULL);
    struct timespec deadline = SPARED ? *until : true_deadline(clock_of(until), until);
    return next(of, lock, &deadline);
}

// Rust waits on futexes by this way alone: with a deadline of a clock, or a time from now on.
long syscall(long number, ...) {
    begin();
    va_list rest;
    va_start(rest, number);
    long given[6];
    for (int n = 0; n < 6; n++) given[n] = va_arg(rest, long);
    va_end(rest);
    struct timespec shorter;
    const struct timespec *wanted = (const struct timespec *)given[3];
    int what = (int)given[1] & FUTEX_CMD_MASK;
    if (number == SYS_futex && wanted && what == FUTEX_WAIT_BITSET) {
        shorter = true_deadline(given[1] & FUTEX_CLOCK_REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC, wanted);
        given[3] = (long)&shorter;
    } else if (number == SYS_futex && wanted && what == FUTEX_WAIT) {
        shorter = spec(span(wanted) / factor() + 1);
        given[3] = (long)&shorter;
    }
    return true_syscall(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}
