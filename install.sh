#!/usr/bin/env bash
# The gateway on plain Linux with systemd: the same unit as the appliance's, with this machine's paths.
#
#   install.sh install [PREFIX]      a venv in PREFIX (/opt/systemmanager), the user, the unit, empty configuration
#   install.sh uninstall [PREFIX]    takes all of that away but /etc/systemmanager, /etc/credstore and the state
#   install.sh unit [PREFIX]         prints the unit
#
# Secrets: one file each, /etc/credstore/systemmanager.NAME, mode 0600; install again when one is added.
# Networks that targets are in: systemctl edit systemmanager-mcp, [Service], IPAddressAllow=192.168.1.0/24
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
prefix=${2:-/opt/systemmanager}
[[ $prefix == /* && $prefix != *[[:space:]%\"]* ]] || { echo "PREFIX must be an absolute path without blanks" >&2; exit 2; }
unit=/etc/systemd/system/systemmanager-mcp.service
credstore=${CREDSTORE:-/etc/credstore}
systemd=${SYSTEMD_VERSION:-$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')}

unit_text() {
  local promises file name
  promises=$(sed -n 's/^ *"\([a-z_]*\)"$/\1/p' "$here/nix/module/promises.nix" | paste -sd,)
  while IFS= read -r line; do
    if [[ $line == Type=notify-reload && $systemd -lt 253 ]]; then
      printf '%s\n' Type=notify "ExecReload=/bin/kill -HUP \$MAINPID"  # Debian 12 knows no notify-reload
      continue
    fi
    printf '%s\n' "$line"
    if [[ $line == '[Service]' ]]; then
      printf 'ExecStart=%s/bin/systemmanager serve\n' "$prefix"
      printf 'Environment="%s"\n' "SYSTEMMANAGER_TARGETS_CONFIG=/etc/systemmanager/targets.yaml" \
        "SYSTEMMANAGER_POLICY_CONFIG=/etc/systemmanager/policy.yaml" "SYSTEMMANAGER_HARDENING=$promises" \
        "SYSTEMMANAGER_REQUIRE_HARDENING=true"
      for file in "$credstore"/systemmanager.*; do
        name=${file##*/systemmanager.}
        [[ ! -f $file || ! $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || printf 'LoadCredential=%s:%s\n' "$name" "$file"
      done
    fi
  done <"$here/nix/systemmanager-mcp.service"
}

install_all() {
  [[ $EUID -eq 0 ]] || { echo "only root installs a system service" >&2; exit 1; }
  getent passwd systemmanager >/dev/null ||
    useradd --system --user-group --home-dir /var/lib/systemmanager --shell /usr/sbin/nologin systemmanager
  "${PYTHON:-python3}" -m venv "$prefix"
  "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$here/requirements.lock"
  "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation "$here"
  install -d -m 0755 /etc/systemmanager
  install -d -m 0700 "$credstore"
  [[ -e /etc/systemmanager/targets.yaml ]] || printf 'version: "1.0"\ntargets: {}\n' >/etc/systemmanager/targets.yaml
  [[ -e /etc/systemmanager/policy.yaml ]] || printf 'version: "1.0"\n' >/etc/systemmanager/policy.yaml
  unit_text >"$unit"
  systemctl daemon-reload
  systemctl enable systemmanager-mcp.service
  systemctl restart systemmanager-mcp.service
}

uninstall_all() {
  [[ $EUID -eq 0 ]] || { echo "only root removes a system service" >&2; exit 1; }
  [[ ! -e $unit ]] || systemctl disable --now systemmanager-mcp.service
  rm -f "$unit"
  systemctl daemon-reload
  [[ ! -x $prefix/bin/systemmanager ]] || rm -rf "$prefix"
  ! getent passwd systemmanager >/dev/null || userdel systemmanager
  echo "left: /etc/systemmanager, $credstore/systemmanager.*, /var/lib/systemmanager (the audit log)"
}

case ${1:-} in
  install) install_all ;;
  uninstall) uninstall_all ;;
  unit) unit_text ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
