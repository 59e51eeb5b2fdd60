# What `make` needs: Python, uv and the programs that the tests start.
{
  mkShell,
  python313,
  uv,
  shellcheck,
  openssh,
  traceroute,
  dnsutils,
}:
mkShell {
  packages = [
    python313
    uv
    shellcheck
    openssh
    traceroute
    dnsutils
  ];
}
