#!/bin/sh
# What the machine of appliance.py has beyond its packages. Called by mmdebstrap with the folder of its root.
set -eu
rm -f "$1"/etc/ssh/ssh_host_*
echo 'Include /srv/test/sshd_config' >"$1/etc/ssh/sshd_config"
for unit in console-getty.service apt-daily.timer apt-daily-upgrade.timer; do
  ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
