#!/bin/sh
# What the machine of `make test-package` does: it installs, upgrades, loses its power, removes and purges
# the package. hack/vm reads the lines that begin with "vm: ".
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
export GANTRY_BIN=/usr/bin GANTRY_TOOLS=/payload GANTRY_VM=1 GANTRY_PATIENCE=10m
export SYSTEMD_BUS_TIMEOUT=600 # systemctl's for each call; its own 25 seconds are for faster machines
cut=/var/lib/power-cut # there after the first start

tests() { # TEST
	/payload/cgroup2.test -test.v -test.timeout 60m -test.run "$1" </dev/null
	status=$?
	[ $status = 0 ] || journalctl --no-pager -o cat -u gantry | tail -n 200
	return $status
}

# quiet keeps what the kernel says off the console, where it would come between the letters of a line.
quiet() { dmesg --console-level emerg; }

say() { # WORDS
	quiet
	echo "vm: $1"
}

cd /tmp || exit
if [ -e $cut ]; then
	tests '^TestPackageAfterThePowerCut$' && tests '^TestPackagePurge$'
	say "exit status $?"
	exit
fi
if tests '^TestPackage$'; then
	touch $cut
	sync
	# It ends in the power cut that it asks for.
	quiet
	tests '^TestPackagePowerCut$'
fi
say "exit status 1"
