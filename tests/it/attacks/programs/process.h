/* What the programs that look at other processes have in common. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static unsigned long hits;

/* A way out that was found: printed, up to a number of lines that a log can hold. */
__attribute__((format(printf, 1, 2))) static inline void hit(const char *format, ...)
{
    va_list arguments;
    if (++hits > 20)
        return;
    printf("hit: ");
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
}

static inline int exists(const char *path)
{
    return access(path, F_OK) == 0;
}

/* The newest process id of the PID namespace of the mounted procfs (proc(5), /proc/loadavg). */
static inline int newest_pid(void)
{
    char text[128] = "";
    int fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return 0;
    text[length] = 0;
    char *last = strrchr(text, ' ');
    return last ? atoi(last + 1) : 0;
}

/* The text of a file of procfs; empty where there is none. */
static inline void read_text(const char *path, char *text, size_t size)
{
    text[0] = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t length = read(fd, text, size - 1);
    close(fd);
    text[length > 0 ? length : 0] = 0;
}

/* The hexadecimal number after a name in /proc/PID/status. */
static inline unsigned long long status_mask(const char *status, const char *name)
{
    const char *line = strstr(status, name);
    return line ? strtoull(line + strlen(name), NULL, 16) : 0;
}
