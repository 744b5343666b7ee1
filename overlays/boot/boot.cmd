# Chooses a slot: the first of BOOT_ORDER that has tries left, one try less each time, written before the kernel runs.
# The state is one sector in U-Boot's own format (sector 64; 65 is a spare), with the names that RAUC uses. A slot that
# is not whole does not stand in BOOT_ORDER. When no slot has tries left, those in the order get them back.
if test "${devtype}" = virtio; then
  # With 96 MiB, U-Boot keeps all from 0x43600000 on for itself, and the kernel needs 38 MiB to run: between them there
  # is one place, for the state, then the packed kernel, and once that is unpacked, the first root, which stays there.
  setenv at_state 0x42800000
  setenv at_packed 0x42800000
  setenv at_kernel 0x40200000
  setenv at_initrd 0x42800000
  setenv initrd_high 0xffffffffffffffff
  setenv fdt_high 0xffffffffffffffff
  setenv consoles "console=ttyAMA0"
else
  setenv at_state 0x0bf00000
  setenv at_packed 0x0c000000
  setenv at_kernel 0x00200000
  setenv at_initrd 0x0e000000
  setenv consoles "console=ttyS1,115200 console=tty1"
fi
setenv BOOT_ORDER
setenv BOOT_A_LEFT
setenv BOOT_B_LEFT
${devtype} dev ${devnum}
for sector in 40 41; do
  if test -z "${BOOT_ORDER}"; then
    if ${devtype} read ${at_state} ${sector} 1; then
      env import -c ${at_state} 200 BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT
    fi
  fi
done
test -n "${BOOT_ORDER}" || setenv BOOT_ORDER "A B"
test -n "${BOOT_A_LEFT}" || setenv BOOT_A_LEFT 3
test -n "${BOOT_B_LEFT}" || setenv BOOT_B_LEFT 3
setenv slot
for each in ${BOOT_ORDER}; do
  if test -z "${slot}"; then
    if test "${each}" = A && test ${BOOT_A_LEFT} -gt 0; then
      setexpr BOOT_A_LEFT ${BOOT_A_LEFT} - 1
      setenv slot A
      setenv part 2
      setenv left ${BOOT_A_LEFT}
    fi
    if test "${each}" = B && test ${BOOT_B_LEFT} -gt 0; then
      setexpr BOOT_B_LEFT ${BOOT_B_LEFT} - 1
      setenv slot B
      setenv part 3
      setenv left ${BOOT_B_LEFT}
    fi
  fi
done
if test -z "${slot}"; then
  echo edgemail: no slot has tries left, those in the order get three
  for each in ${BOOT_ORDER}; do
    setenv BOOT_${each}_LEFT 3
  done
fi
env export -c -s 200 ${at_state} BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT
${devtype} write ${at_state} 40 1
test -n "${slot}" || reset
echo edgemail: slot ${slot}, ${left} tries left
setenv more
if test -e ${devtype} ${devnum}:1 boot-arguments.txt; then # "more=...": words for the kernel, to look into a fault
  load ${devtype} ${devnum}:1 ${at_state} boot-arguments.txt && env import -t ${at_state} ${filesize} more
fi
# cma=0: nothing here shows pictures, for which 64 MiB would be set apart; kpti=off: a fault that the processors of these
# boards do not have, and no program runs here that is not ours; lsm=, audit=0: what nothing here uses.
setenv bootargs "${consoles} quiet panic=5 cryptomgr.notests cma=0 kpti=off lsm=capability,yama audit=0 edgemail.slot=${slot} edgemail.left=${left} ${more}"
load ${devtype} ${devnum}:${part} ${at_packed} kernel.gz && unzip ${at_packed} ${at_kernel} && load ${devtype} ${devnum}:${part} ${at_initrd} initrd && booti ${at_kernel} ${at_initrd}:${filesize} ${fdt_addr}
echo edgemail: slot ${slot} cannot be loaded
sleep 2
reset
