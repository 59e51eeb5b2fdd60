#!/bin/sh
# What the machine of machine.py has beyond its packages. Called by mmdebstrap with the folder of its root.
set -eu
root=$1
cat >"$root/tmp/setup" <<'INSIDE'
set -eu
useradd -m -s /bin/bash gateway
echo 'gateway ALL=(root) NOPASSWD: /usr/bin/systemctl, /usr/bin/journalctl' >/etc/sudoers.d/gateway
rm -f /etc/ssh/ssh_host_*
echo 'Include /srv/test/sshd_config' >/etc/ssh/sshd_config
systemctl --quiet mask console-getty.service apt-daily.timer apt-daily-upgrade.timer

# A repository for dnf: sm-app is installed as 1.0, and 2.0 mends a security fault; sm-tool is not installed.
mkdir -p /srv/repo /tmp/rpm
for built in app-1.0 app-2.0 tool-1.0; do
  name=${built%-*} version=${built#*-}
  cat >/tmp/rpm/spec <<SPEC
Name: sm-$name
Version: $version
Release: 1
Summary: A package for tests
License: MIT
BuildArch: noarch
%description
For tests.
%install
mkdir -p %{buildroot}/usr/share/sm-$name
echo $version >%{buildroot}/usr/share/sm-$name/version
%files
/usr/share/sm-$name
SPEC
  rpmbuild --quiet -bb --define '_topdir /tmp/rpm' --define '_rpmdir /srv/repo' /tmp/rpm/spec 2>/dev/null
done
rpm -i --nodeps /srv/repo/noarch/sm-app-1.0-1.noarch.rpm 2>/dev/null
createrepo_c --quiet /srv/repo
cat >/tmp/rpm/updateinfo.xml <<ADVICE
<?xml version="1.0" encoding="UTF-8"?>
<updates><update from="test" status="final" type="security" version="1"><id>SM-2026:1</id><title>sm-app</title>
<issued date="2026-01-01 00:00:00"/><severity>Important</severity><pkglist><collection short="t"><name>t</name>
<package name="sm-app" version="2.0" release="1" epoch="0" arch="noarch">
<filename>sm-app-2.0-1.noarch.rpm</filename></package></collection></pkglist></update></updates>
ADVICE
modifyrepo_c /tmp/rpm/updateinfo.xml /srv/repo/repodata >/dev/null
printf '[main]\nenabled=0\n' >/etc/dnf/plugins/local.conf  # Debian's own, which looks for a repository that is not there
mkdir -p /etc/yum.repos.d /etc/dnf/vars
echo 9 >/etc/dnf/vars/releasever
printf '[local]\nname=local\nbaseurl=file:///srv/repo\nenabled=1\ngpgcheck=0\n' >/etc/yum.repos.d/local.repo
rm -rf /tmp/rpm
INSIDE
chroot "$root" sh /tmp/setup
rm "$root/tmp/setup"
