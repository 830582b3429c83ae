/* Preloaded into a program that has REACHED and GO in its environment, two FIFOs that it keeps open: each sync of a
   file writes the file's name and a newline to the first, and goes on when there is a byte in the second. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void hold(int file)
{
    char link[64], path[PATH_MAX + 1], byte;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX);
    int reached = open(getenv("REACHED"), O_WRONLY | O_CLOEXEC), go = open(getenv("GO"), O_RDONLY | O_CLOEXEC);
    if (length <= 0 || reached < 0 || go < 0)
        abort();
    path[length] = '\0';
    char *name = strrchr(path, '/') + 1;
    if (dprintf(reached, "%s\n", name) < 0 || read(go, &byte, 1) != 1)
        abort();
    close(reached);
    close(go);
}

static int held(const char *function, int file)
{
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, function);
    if (getenv("GO") != NULL)
        hold(file);
    return sync(file);
}

int fdatasync(int file) { return held("fdatasync", file); }
int fsync(int file) { return held("fsync", file); }
