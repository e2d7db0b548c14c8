/* keyring add NAME VALUE: adds a key to the session keyring and stays.
 * keyring look NAME: looks for a key in the session keyring and all that it leads to; prints its value, or why there is none.
 * keyring id: prints the id of the session keyring (keyctl(2)). */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SESSION (-3)
#define GET_ID 0
#define SEARCH 10
#define READ 11

int main(int count, char **arguments)
{
    char value[256] = "";
    if (count == 4 && !strcmp(arguments[1], "add")) {
        long key = syscall(SYS_add_key, "user", arguments[2], arguments[3], strlen(arguments[3]), SESSION);
        /* For every user and every process that has the keyring. */
        if (key > 0)
            syscall(SYS_keyctl, 5, key, 0x3f3f3f3f);
        printf("%s\n", key > 0 ? "added" : strerror(errno));
        fflush(stdout);
        for (;;)
            pause();
    }
    if (count == 3 && !strcmp(arguments[1], "look")) {
        long key = syscall(SYS_keyctl, SEARCH, (long)SESSION, "user", arguments[2], 0);
        if (key < 0)
            key = syscall(SYS_request_key, "user", arguments[2], NULL, 0);
        if (key < 0) {
            printf("none: %s\n", strerror(errno));
            return 0;
        }
        syscall(SYS_keyctl, READ, key, value, sizeof value - 1);
        printf("found: %s\n", value);
        return 0;
    }
    if (count == 2 && !strcmp(arguments[1], "id")) {
        printf("%ld\n", syscall(SYS_keyctl, GET_ID, (long)SESSION, 0));
        return 0;
    }
    return 2;
}
