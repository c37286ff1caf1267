// Preloaded on a host whose clock shall be wrong: the time of day is CLOCK_AHEAD_S seconds ahead, durations are right.
// (libfaketime 0.9.10, which can do more, makes Python's time.sleep fail.)
#include <cstdlib>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead() {
    static const long seconds = std::atol(std::getenv("CLOCK_AHEAD_S") ? std::getenv("CLOCK_AHEAD_S") : "0");
    return seconds;
}

extern "C" int clock_gettime(clockid_t clock, timespec *now) noexcept {
    const long failed = syscall(SYS_clock_gettime, clock, now);
    if (failed == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return static_cast<int>(failed);
}

extern "C" int gettimeofday(timeval *now, void *) noexcept {
    timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    *now = {exact.tv_sec, exact.tv_nsec / 1000};
    return 0;
}

extern "C" time_t time(time_t *now) noexcept {
    timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
