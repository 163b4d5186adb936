<?xml version="1.0"?>
<!-- The executor's result becomes what the customer reads. -->
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:template match="/result">
    <acknowledgement>
      <customer><xsl:value-of select="@customer"/></customer>
      <total><xsl:value-of select="@total"/></total>
    </acknowledgement>
  </xsl:template>
</xsl:stylesheet>
