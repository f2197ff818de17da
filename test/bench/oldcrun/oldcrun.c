/* Runs crun after telling it, in the bundle of a create, that the configuration is of OCI version 1.0.2:
 * Debian 12's crun 1.8 refuses later ones, and CRI-O writes no other. It costs one more execve. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void relabel(const char *bundle)
{
	static const char key[] = "\"ociVersion\":";
	char path[4096];
	struct stat st;
	int fd;
	char *text, *at, *end;

	snprintf(path, sizeof path, "%s/config.json", bundle);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return;
	text = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (text == MAP_FAILED)
		return;
	at = memmem(text, st.st_size, key, sizeof key - 1);
	if (at) {
		at = memchr(at + sizeof key - 1, '"', text + st.st_size - (at + sizeof key - 1));
		if (!at)
			return;
		at++;
		end = memchr(at, '"', text + st.st_size - at);
		if (end && end - at >= 5) {
			memset(at, ' ', end - at + 1);
			memcpy(at, "1.0.2\"", 6);
		}
	}
	munmap(text, st.st_size);
}

int main(int argc, char **argv)
{
	int i;

	for (i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], "--bundle") || !strcmp(argv[i], "-b"))
			relabel(argv[i + 1]);
	execv("/usr/bin/crun", argv);
	return 127;
}
