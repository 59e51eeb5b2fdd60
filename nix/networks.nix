# IPv4 addresses and the networks that hold them.
{ lib }:
let
  numbers = text: map lib.toIntBase10 (lib.splitString "." text);
  value = address: lib.foldl' (sum: part: sum * 256 + part) 0 (numbers address);
  power = exponent: if exponent == 0 then 1 else 2 * power (exponent - 1);
in
rec {
  isIPv4 = text: builtins.match "([0-9]{1,3}\\.){3}[0-9]{1,3}" text != null;
  within =
    address: network:
    let
      parts = lib.splitString "/" network;
      bits = if lib.length parts == 1 then 32 else lib.toIntBase10 (lib.last parts);
      size = power (32 - bits);
    in
    isIPv4 (lib.head parts) && value address / size == value (lib.head parts) / size;
}
