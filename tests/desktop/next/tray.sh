# ipc-tray in the panel of Xfce, with its menu opened.

. /ipc/next/common.sh
mkdir -p "$HOME/.config/xfce4/xfconf/xfce-perchannel-xml"
cat >"$HOME/.config/xfce4/xfconf/xfce-perchannel-xml/xfce4-panel.xml" <<'XML'
<?xml version="1.0" encoding="UTF-8"?>
<channel name="xfce4-panel" version="1.0">
  <property name="configver" type="int" value="2"/>
  <property name="panels" type="array">
    <value type="int" value="1"/>
    <property name="panel-1" type="empty">
      <property name="position" type="string" value="p=6;x=0;y=0"/>
      <property name="length" type="uint" value="100"/>
      <property name="size" type="uint" value="32"/>
      <property name="icon-size" type="uint" value="0"/>
      <property name="plugin-ids" type="array"><value type="int" value="1"/></property>
    </property>
  </property>
  <property name="plugins" type="empty">
    <property name="plugin-1" type="string" value="systray">
      <property name="square-icons" type="bool" value="true"/>
    </property>
  </property>
</channel>
XML
icons
screen
openbox >/dev/null 2>&1 &
service
objects
xfce4-panel >/pictures/xfce4-panel.log 2>&1 &
until_true busctl --user get-property org.kde.StatusNotifierWatcher /StatusNotifierWatcher org.kde.StatusNotifierWatcher IsStatusNotifierHostRegistered
/ipc/ipc-tray >/pictures/ipc-tray.log 2>&1 &
registered() {
    busctl --user get-property org.kde.StatusNotifierWatcher /StatusNotifierWatcher \
        org.kde.StatusNotifierWatcher RegisteredStatusNotifierItems | grep --quiet '^as [1-9]'
}
until_true registered
picture tray-panel
xdotool mousemove 17 16 click 1
picture tray-menu
echo "PASSED"
