"""The system calls that the relay and what it starts may make: a filter for the kernel, without a library.

Owns the list and the program made of it, for x86-64 and AArch64. What is on the list is let through; what only somebody
who has taken over the process would try ends it; all else does not exist (ENOSYS), which is what libraries are ready
for when they try a call that a kernel may not have. Namespaces and exotic kinds of sockets are kept out by argument.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final

# name:number on x86-64:number on AArch64
ALLOWED: Final = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
preadv2:327:286 pwritev2:328:287 open:2:- openat:257:56 openat2:437:437 close:3:57 close_range:436:436 lseek:8:62
stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79 statx:332:291 statfs:137:43 fstatfs:138:44 access:21:-
faccessat:269:48 faccessat2:439:439 readlink:89:- readlinkat:267:78 getdents64:217:61 getdents:78:- getcwd:79:17
chdir:80:49 fchdir:81:50 rename:82:- renameat:264:38 renameat2:316:276 mkdir:83:- mkdirat:258:34 rmdir:84:-
unlink:87:- unlinkat:263:35 link:86:- linkat:265:37 symlink:88:- symlinkat:266:36 chmod:90:- fchmod:91:52
fchmodat:268:53 fchown:93:55 chown:92:- lchown:94:- fchownat:260:54 umask:95:166 utimensat:280:88 futimesat:261:-
utimes:235:- utime:132:- truncate:76:45 ftruncate:77:46 fallocate:285:47 fadvise64:221:223 readahead:187:213
fsync:74:82 fdatasync:75:83 sync_file_range:277:84 msync:26:227 flock:73:32 fcntl:72:25 dup:32:23 dup2:33:-
dup3:292:24 pipe:22:- pipe2:293:59 sendfile:40:71 splice:275:76 tee:276:77 copy_file_range:326:285 ioctl:16:29
mmap:9:222 munmap:11:215 mprotect:10:226 mremap:25:216 madvise:28:233 brk:12:214 mlock:149:228 munlock:150:229
mincore:27:232 membarrier:324:283 poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:-
epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:-
eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87 signalfd:282:- signalfd4:289:74
inotify_init:253:- inotify_init1:294:26 inotify_add_watch:254:27 inotify_rm_watch:255:28 socketpair:53:199 bind:49:200
listen:50:201 accept:43:202 accept4:288:242 connect:42:203 getsockname:51:204 getpeername:52:205 setsockopt:54:208
getsockopt:55:209 shutdown:48:210 sendto:44:206 recvfrom:45:207 sendmsg:46:211 recvmsg:47:212 sendmmsg:307:269
recvmmsg:299:243 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 restart_syscall:219:128 pause:34:- kill:62:129
tgkill:234:131 tkill:200:130 alarm:37:- getitimer:36:102 setitimer:38:103 nanosleep:35:101 clock_nanosleep:230:115
clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169 time:201:- adjtimex:159:171 times:100:153 futex:202:98
futex_waitv:449:449 set_robust_list:273:99 get_robust_list:274:100 set_tid_address:218:96 rseq:334:293
sched_yield:24:124 sched_getaffinity:204:123 sched_setaffinity:203:122 sched_getparam:143:121
sched_getscheduler:145:120 sched_get_priority_max:146:125 sched_get_priority_min:147:126 getpriority:140:141 fork:57:-
vfork:58:- execve:59:221 execveat:322:281 exit:60:93 exit_group:231:94 wait4:61:260 waitid:247:95 arch_prctl:158:-
prctl:157:167 prlimit64:302:261 getrlimit:97:163 setrlimit:160:164 getrusage:98:165 getpid:39:172 getppid:110:173
gettid:186:178 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getgroups:115:158 getresuid:118:148
getresgid:120:150 getpgrp:111:- getpgid:121:155 getsid:124:156 setsid:112:157 setpgid:109:154 capget:125:90
pidfd_open:434:434 pidfd_send_signal:424:424 uname:63:160 sysinfo:99:179 getrandom:318:278 getcpu:309:168
"""
HOSTILE: Final = """
ptrace:101:117 process_vm_readv:310:270 process_vm_writev:311:271 mount:165:40 umount2:166:39 pivot_root:155:41
chroot:161:51 move_mount:429:429 open_tree:428:428 fsopen:430:430 fsconfig:431:431 fsmount:432:432
mount_setattr:442:442 swapon:167:224 swapoff:168:225 reboot:169:142 kexec_load:246:104 kexec_file_load:320:294
init_module:175:105 finit_module:313:273 delete_module:176:106 bpf:321:280 perf_event_open:298:241 userfaultfd:323:282
settimeofday:164:170 clock_settime:227:112 sethostname:170:161 setdomainname:171:162 acct:163:89 quotactl:179:60
iopl:172:- ioperm:173:- open_by_handle_at:304:-
"""

# CLONE_NEW*: a namespace of its own is where escapes begin. clone3 hides its flags from us: it does not exist.
CLONE: Final = {"x86_64": 56, "aarch64": 220}
NAMESPACES: Final = 0x7E02_0080
SOCKET: Final = {"x86_64": 41, "aarch64": 198}
FAMILIES: Final = (1, 2, 10, 16)  # unix, inet, inet6, netlink
ARCHITECTURES: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}

_LOAD, _EQUAL, _ABOVE, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # in struct seccomp_data; the lower half of the first argument
_X32: Final = 0x4000_0000
_INSTRUCTION: Final = struct.Struct("=HBBI")
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


def numbers(table: str, machine: str) -> Iterator[int]:
    """The numbers of a table's calls on a machine, as far as it has them."""
    column = 1 + tuple(ARCHITECTURES).index(machine)
    for entry in table.split():
        number = entry.split(":")[column]
        if number != "-":
            yield int(number)


def program(machine: str) -> bytes:
    """The filter, as instructions of classic BPF. Raises KeyError for a machine that it was not written for."""
    missing = _ERRNO | errno.ENOSYS
    out = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        out += [(_ABOVE, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for table, verdict in ((ALLOWED, _ALLOW), (HOSTILE, _KILL)):
        for number in numbers(table, machine):
            out += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, verdict)]
    out += [
        (_EQUAL, 0, 4, CLONE[machine]),
        (_LOAD, 0, 0, _ARGUMENT),
        (_BITS, 0, 1, NAMESPACES),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 1, 0, SOCKET[machine]),
        (_RETURN, 0, 0, missing),
        (_LOAD, 0, 0, _ARGUMENT),
    ]
    for family in FAMILIES:
        out += [(_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    out.append((_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT))
    return b"".join(_INSTRUCTION.pack(*each) for each in out)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def confine(machine: str = "") -> None:
    """From now on this process and its children gain no privilege and make no call that is not allowed.

    Raises OSError where the kernel refuses, KeyError on a machine without a list.
    """
    code = program(machine or os.uname().machine)
    libc = ctypes.CDLL(None, use_errno=True)
    given = _Program(len(code) // _INSTRUCTION.size, code)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(given), 0, 0),
    ):
        if libc.prctl(*(ctypes.c_ulong(each) if isinstance(each, int) else each for each in call)) != 0:
            code_of = ctypes.get_errno()
            raise OSError(code_of, f"no filter for system calls: {os.strerror(code_of)}")
