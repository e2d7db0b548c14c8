/* exchange STOP A B: lets A and B change places until the file STOP is there (renameat2(2), RENAME_EXCHANGE), so that whoever
 * looks a path up twice finds another thing the second time. Prints how often. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    unsigned long exchanges = 0;
    if (count < 4)
        return 2;
    printf("ready\n");
    fflush(stdout);
    while (access(arguments[1], F_OK)) {
        for (int i = 0; i < 64; i++) {
            if (renameat2(AT_FDCWD, arguments[2], AT_FDCWD, arguments[3], RENAME_EXCHANGE)) {
                /* A mount on one of them: it goes on when that is gone. */
                if (errno == EBUSY || errno == ENOENT)
                    continue;
                printf("renameat2: %s\n", strerror(errno));
                return 1;
            }
            exchanges++;
        }
    }
    printf("exchanged %lu\n", exchanges);
    return 0;
}
