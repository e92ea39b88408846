/* Watches the processes that appear in its pid namespace from their first moment on, and tells at SIGTERM what it has seen of the host
   through them: watcher SECRET NETWORK MOUNT. SECRET is a path of the host's, NETWORK a text in the host's /proc/net/unix, MOUNT one in its
   /proc/self/mountinfo. What can be opened is all that is asked for: no ptrace(2), no signal. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t done;
static char text[1 << 20];

static void stop(int number) { (void)number; done = 1; }

static int holds(const char *path, const char *word)
{
	int file = open(path, O_RDONLY), found = 0;
	size_t length = 0;
	ssize_t more;
	if (file < 0)
		return 0;
	while (length < sizeof text - 1 && (more = read(file, text + length, sizeof text - 1 - length)) > 0)
		length += more;
	text[length] = 0;
	found = strstr(text, word) != NULL;
	close(file);
	return found;
}

static int links(pid_t pid)
{
	char path[64], target[256];
	int found = 0;
	for (int number = 0; number < 32; number++) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, number);
		ssize_t length = readlink(path, target, sizeof target - 1);
		if (length <= 0)
			continue;
		target[length] = 0;
		found |= strstr(target, "cgroup") || strstr(target, ":[4026") || strstr(target, ":[4027");
	}
	snprintf(path, sizeof path, "/proc/%d/cwd", pid);
	ssize_t length = readlink(path, target, sizeof target - 1);
	if (length > 0) {
		target[length] = 0;
		found |= strcmp(target, "/") != 0;
	}
	return found;
}

int main(int count, char **words)
{
	char path[512];
	int next = getpid() + 1, seen = 0, root = 0, network = 0, mounts = 0, descriptors = 0;
	if (count != 4)
		return 2;
	signal(SIGTERM, stop);
	puts("watching");
	fflush(stdout);
	while (!done) {
		int pid = 0;
		for (int number = next; number < next + 40 && !pid; number++)
			if (kill(number, 0) == 0 || errno == EPERM)
				pid = number;
		if (!pid)
			continue;
		next = pid + 1;
		seen++;
		snprintf(path, sizeof path, "/proc/%d/root%s", pid, words[1]);
		root += access(path, F_OK) == 0;
		snprintf(path, sizeof path, "/proc/%d/net/unix", pid);
		network += holds(path, words[2]);
		snprintf(path, sizeof path, "/proc/%d/mountinfo", pid);
		mounts += holds(path, words[3]);
		descriptors += links(pid);
	}
	printf("seen %d root %d network %d mounts %d descriptors %d\n", seen > 0, root, network, mounts, descriptors);
	return 0;
}
