# What requirements.lock says that a system installs: one record per wheel.
{ lib }:
lock: system:
let
  line = builtins.match "# wheel ([a-z0-9_,-]+) ([A-Za-z0-9_.+-]+-([A-Za-z0-9_.]+)-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+\\.whl) sha256:([0-9a-f]{64})";
  records = map (
    found:
    let
      file = lib.elemAt found 1;
      parts = lib.splitString "-" file;
    in
    {
      inherit file;
      systems = lib.splitString "," (lib.elemAt found 0);
      python = lib.elemAt found 2;
      sha256 = lib.elemAt found 3;
      name = lib.replaceStrings [ "_" "." ] [ "-" "-" ] (lib.toLower (lib.head parts));
      version = lib.elemAt parts 1;
    }
  ) (lib.filter (found: found != null) (map line (lib.splitString "\n" lock)));
in
lib.filter (record: lib.elem system record.systems) records
