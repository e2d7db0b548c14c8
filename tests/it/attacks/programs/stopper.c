/* stopper STOP: sends SIGSTOP to each process of its PID namespace that is still a program of the runtime, on its way into
 * the container. Runs until the file STOP is there, then prints how many it has stopped. */
#include "process.h"
#include <signal.h>

int main(int count, char **arguments)
{
    unsigned long stopped = 0;
    if (count < 2)
        return 2;
    printf("ready\n");
    fflush(stdout);
    int next = newest_pid() + 1;
    for (unsigned long round = 0;; round++) {
        for (int pid = next; pid < next + 4; pid++) {
            char path[64], name[64];
            snprintf(path, sizeof path, "/proc/%d/comm", pid);
            read_text(path, name, sizeof name);
            if (!strncmp(name, "berth", 5) && kill(pid, SIGSTOP) == 0) {
                stopped++;
                next = pid + 1;
            }
        }
        if (round % 16 == 0) {
            int newest = newest_pid();
            if (newest > next)
                next = newest;
            if (exists(arguments[1]))
                break;
        }
    }
    printf("stopped %lu\n", stopped);
    return 0;
}
