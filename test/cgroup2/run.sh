#!/bin/sh
# What the machine of `make test-cgroup2` does: it installs gantry as an administrator would and runs
# the tests. hack/vm reads the lines that begin with "vm: ".
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export GANTRY_BIN=/usr/bin GANTRY_TOOLS=/payload GANTRY_VM=1 GANTRY_PATIENCE=10m
export SYSTEMD_BUS_TIMEOUT=600 # systemctl's for each call; its own 25 seconds are for faster machines
cut=/var/lib/power-cut # there after the first start

echo "127.0.1.1 $(hostname)" >>/etc/hosts # sudo, by which critest loads AppArmor profiles, complains without
tar -C / -xzf /payload/gantry.tar.gz
systemctl daemon-reload
echo "$(uname -r), $(systemctl --version | head -1), $(crun --version | head -1), $(runc --version | head -1), cgroups $(cat /sys/fs/cgroup/cgroup.controllers)"

tests() { # [argument of the test binary]...
	/payload/cgroup2.test -test.v -test.timeout 120m "$@"
	status=$?
	[ $status = 0 ] || journalctl --no-pager -o cat -u gantry | tail -n 400
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
	tests -test.run '^TestAfterThePowerCut$'
	say "exit status $?"
	exit
fi
# shellcheck disable=SC2046 # arguments are words
if tests -test.skip 'PowerCut|Package' $(cat /payload/arguments); then
	touch $cut
	sync
	# It ends in the power cut that it asks for.
	quiet
	tests -test.run '^TestPowerCut$'
fi
say "exit status 1"
